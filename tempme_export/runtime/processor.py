"""Int8 arithmetic of the processor."""

from pathlib import Path
from typing import Literal

Int8Products = Literal["dot product", "pairs", "unknown"]

_DOT_PRODUCT = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
INT8_ADVICE: dict[Int8Products, str] = {
    "dot product": "has int8 dot products, which --precision int8 is for",
    "pairs": "has no int8 dot products (VNNI, AMX, Arm dotprod): --precision int8 was 1.4 to 1.7 times as fast as "
    "float32 on such a one; results are the same",
    "unknown": "unknown; --precision int8 pays with int8 dot products (VNNI, AMX, Arm dotprod)",
}
_TOKENS_AT_ONCE = 2400


def videos_at_once(tokens: int) -> int:
    """Number of videos of `tokens` tokens that an int8 graph is given in one run; a larger batch is run in parts.

    No embedding depends on its neighbours, so a batch may be cut where memory says. On two cores a video took as long
    in any batch from 1 to 8, while memory grows with the batch: four videos of a ViT-B/16 at once take 524 MB of
    activations, one after another 133.
    """
    return max(1, _TOKENS_AT_ONCE // tokens)


def flags(cpuinfo: str) -> set[str]:
    """The feature flags in the text of /proc/cpuinfo: `flags` of x86, `Features` of Arm."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((set(value.split()) for key, _, value in lines if key.strip() in ("flags", "Features")), set())


def int8_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> Int8Products:
    """Kind of int8 product of the processor: sums of 32 bits in one instruction, or of pairs that saturate at 16."""
    found = flags(cpuinfo.read_text()) if cpuinfo.is_file() else set()
    if not found:
        return "unknown"
    return "dot product" if found & _DOT_PRODUCT else "pairs"
