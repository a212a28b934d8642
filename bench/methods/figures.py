"""Figures that the paper prints for a method: Tables 1, 2, 4, 9, 10 and 16."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tempme_export.bench import paper
from tempme_export.bench.methods.catalogue import Method

_B32, _B16 = "ViT-B-32-quickgelu", "ViT-B-16-quickgelu"


@dataclass(frozen=True)
class PaperFigures:
    """Figures in print; None where the paper prints none.

    gflops        the paper's GFLOPs: multiply-accumulates per video, in 1e9
    tokens        clips and tokens per clip after the last block
    videos_per_s  on an A100, batch size and precision not said
    source        tables
    claim         the settings they belong to, where the paper gives all of them
    note          why the settings do not give them
    """

    gflops: float | None
    tokens: tuple[int, int] | None
    videos_per_s: float | None
    source: str
    claim: paper.Claim | None = None
    note: str = ""

    @property
    def total_tokens(self) -> int | None:
        """Tokens of the whole video, as in Table 4."""
        return None if self.tokens is None else self.tokens[0] * self.tokens[1]


# Method, backbone and frames -> GFLOPs, tokens, tables: methods whose settings the paper does not give.
_UNCLAIMED: Mapping[tuple[str, str, int], tuple[float, tuple[int, int] | None, str]] = MappingProxyType(
    {
        ("diffrate", _B32, 12): (36.8, (12, 20), "Tables 1, 2"),
        ("diffrate", _B32, 64): (190.1, (64, 20), "Table 1"),
        ("diffrate", _B16, 12): (138.5, (12, 49), "Table 1"),
        ("sta", _B32, 12): (35.7, None, "Table 2"),
        ("testa", _B32, 12): (40.6, None, "Table 2"),
    }
)
# Videos per second of Table 4.
_SPEEDS: Mapping[tuple[str, str, int], float] = MappingProxyType(
    {
        ("none", _B16, 12): 30.6,
        ("diffrate", _B16, 12): 40.6,
        ("tome", _B16, 12): 40.8,
        ("tempme", _B16, 12): 45.1,
    }
)


def paper_figures(method: Method, backbone_name: str, frames: int) -> PaperFigures | None:
    """Figures of the paper for a method on a backbone (an open_clip name); None where it prints nothing."""
    key = (method.key, backbone_name, frames)
    speed = _SPEEDS.get(key)
    if key in _UNCLAIMED:
        gflops, tokens, source = _UNCLAIMED[key]
        return PaperFigures(gflops, tokens, speed, _with_table_4(source, speed))
    for claim in paper.CLAIMS:
        if claim.label in method.labels and (claim.backbone, claim.frames) == (backbone_name, frames):
            row = paper.count(claim)
            source = _with_table_4(claim.source, speed)
            return PaperFigures(claim.printed, claim.printed_tokens, speed, source, claim, row.reason)
    return None


def _with_table_4(source: str, speed: float | None) -> str:
    return source if speed is None else f"{source}, Table 4"
