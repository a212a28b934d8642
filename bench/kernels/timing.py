"""`tempme-bench kernels`: time of each fused call, its share of the memory's speed, and what merging
costs an encoder.

Ours are replayed from CUDA graphs, as in a deployed encoder. Plain PyTorch and its torch.compile are called as they
are, launches included.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tempme_export.bench.candidates import DTYPES
from tempme_export.bench.core.clocks import Timer, Work, copy_work, l2_bytes
from tempme_export.bench.core.protocol import Progress, Protocol
from tempme_export.bench.core.timing import Timing
from tempme_export.bench.kernels.calls import Inputs, KernelCall, fused_calls, merging_calls, moved_bytes
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.profile import Profile
from tempme_export.encoder.random_weights import draw_checkpoint
from tempme_export.encoder.recipe import Recipe, prepare
from tempme_export.errors import BackendError, UsageError

PROFILES = ("vit-b-32-12f", "vit-b-16-12f")
PROTOCOL = Protocol(seconds=0.02, samples=25, budget=20.0, window=5, lead=0.0)
"""A call of microseconds is repeated within a sample, so that few of them are steady, and its caches are set anyway."""

_WARM_CALLS = 20
_L2_TIMES = 4  # cold: this many times the L2 cache passes by before an input is met again
_MOST_SETS = 128
_MOST_EAGER_SETS = 32  # where inputs are so small that more would fit the cache, launches take longer than memory


@dataclass(frozen=True)
class KernelRow:
    """One fused call of one block. Times are microseconds per call, rates 1e9 bytes per second.

    sign            +1 where it is there because tokens merge, -1 for what would run in its place without
    shape           of the tokens it reads
    mbytes          that it has to move, in 1e6, as `calls.moved_bytes` counts
    warm_us         inputs as the last call left them in the L2 cache; cold_us: out of memory; each with its
                    20th and 80th percentile
    share_of_copy   cold_gb_s over that of a copy within the device's memory, measured beside it
    plain_us        plain PyTorch, eager: the dense form; compiled_us: the same through torch.compile; None where
                    not measured
    """

    profile: str
    batch: int
    dtype: str
    block: int
    kernel: str
    sign: int
    shape: str
    mbytes: float
    warm_us: float
    warm_p20_us: float
    warm_p80_us: float
    cold_us: float
    cold_p20_us: float
    cold_p80_us: float
    warm_gb_s: float
    cold_gb_s: float
    copy_gb_s: float
    share_of_copy: float
    plain_us: float
    plain_cold_us: float
    compiled_us: float | None
    compiled_cold_us: float | None


@dataclass(frozen=True)
class MarginalRow:
    """Cost of merging to an encoder: its calls, less what would run in their place, summed over the blocks.

    encode_ms   the whole encoder, replayed from a CUDA graph
    warm, cold  milliseconds, and their shares of encode_ms; each block's sum in microseconds
    """

    profile: str
    batch: int
    dtype: str
    encode_ms: float
    warm_ms: float
    cold_ms: float
    warm_share: float
    cold_share: float
    warm_us_by_block: dict[int, float]
    cold_us_by_block: dict[int, float]


@dataclass(frozen=True)
class Encoder:
    """One encoder whose calls are timed.

    compiled  blocks whose calls go through torch.compile too, seconds per call; None: one of each kind
    """

    recipe: Recipe
    batch: int
    dtype: str
    device: torch.device
    compiled: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.recipe.profile.name}, batch {self.batch}, {self.dtype}"


def require_gpu() -> torch.device:
    """The current CUDA device. Raises BackendError without one."""
    if not torch.cuda.is_available():
        raise BackendError(
            "there is nothing to time: kernels run on a GPU, and torch finds none. What they take of one is compiled "
            "without it. Run: tempme-bench kernels --resources"
        )
    return torch.device("cuda", torch.cuda.current_device())


def check_dtypes(names: Iterable[str]) -> None:
    """Raise UsageError for a dtype that kernels do not take."""
    unknown = [name for name in names if name not in DTYPES]
    if unknown:
        raise UsageError(f"--dtype: found {', '.join(unknown)}, expected of {', '.join(DTYPES)}.")


def kernel_row(
    encoder: Encoder, call: KernelCall, n_bytes: int, times: Mapping[str, Timing], copy_gb_s: float
) -> KernelRow:
    """A row from the timings `warm`, `cold`, `plain`, `plain cold` and, if there, `compiled` and `compiled cold`."""
    us = {name: one.p50 * 1e6 for name, one in times.items()}
    rates = {name: n_bytes / times[name].p50 / 1e9 for name in ("warm", "cold")}
    warm, cold = times["warm"], times["cold"]
    return KernelRow(
        profile=encoder.recipe.profile.name,
        batch=encoder.batch,
        dtype=encoder.dtype,
        block=call.block,
        kernel=call.name,
        sign=call.sign,
        shape=call.shape,
        mbytes=n_bytes / 1e6,
        warm_us=us["warm"],
        warm_p20_us=warm.percentile(20) * 1e6,
        warm_p80_us=warm.percentile(80) * 1e6,
        cold_us=us["cold"],
        cold_p20_us=cold.percentile(20) * 1e6,
        cold_p80_us=cold.percentile(80) * 1e6,
        warm_gb_s=rates["warm"],
        cold_gb_s=rates["cold"],
        copy_gb_s=copy_gb_s,
        share_of_copy=rates["cold"] / copy_gb_s,
        plain_us=us["plain"],
        plain_cold_us=us["plain cold"],
        compiled_us=us.get("compiled"),
        compiled_cold_us=us.get("compiled cold"),
    )


def marginal_row(rows: Sequence[KernelRow], encode_s: float) -> MarginalRow:
    """Cost of merging: the signed sum of `rows`, which share profile, batch and dtype. `encode_s` in seconds."""
    first, encode_ms = rows[0], encode_s * 1e3
    warm: dict[int, float] = {}
    cold: dict[int, float] = {}
    for row in rows:
        warm[row.block] = warm.get(row.block, 0.0) + row.sign * row.warm_us
        cold[row.block] = cold.get(row.block, 0.0) + row.sign * row.cold_us
    warm_ms, cold_ms = sum(warm.values()) / 1e3, sum(cold.values()) / 1e3
    return MarginalRow(
        profile=first.profile,
        batch=first.batch,
        dtype=first.dtype,
        encode_ms=encode_ms,
        warm_ms=warm_ms,
        cold_ms=cold_ms,
        warm_share=warm_ms / encode_ms,
        cold_share=cold_ms / encode_ms,
        warm_us_by_block=warm,
        cold_us_by_block=cold,
    )


def one_of_each_kind(calls: Iterable[KernelCall]) -> tuple[int, ...]:
    """The second block that merges within clips, which has sizes, and the first that joins clips."""
    within = [call.block for call in calls if call.name == "attention_match"]
    across = [call.block for call in calls if call.name == "match_clips"]
    return tuple(sorted({*within[1:2], *across[:1]}))


def input_sets(inputs: Inputs, n_bytes: int, l2: int) -> list[Inputs]:
    """The inputs of a call, and as many copies of them as push one another out of an L2 cache of so many bytes.

    LayerNorm parameters are shared: in an encoder they are as small beside the tokens.
    """

    def copy() -> Inputs:
        return tuple(one.clone() if isinstance(one, Tensor) and one.ndim > 1 else one for one in inputs)

    n = math.ceil(_L2_TIMES * l2 / n_bytes) + 1
    return [inputs, *(copy() for _ in range(min(_MOST_SETS, n) - 1))]


def _works(run: Callable[..., object], sets: Sequence[Inputs], name: str, *, graph: bool) -> dict[str, Work]:
    warm, cold = ("warm", "cold") if name == "" else (name, f"{name} cold")
    calls = tuple(torch.inference_mode()(partial(run, *one)) for one in sets)
    repeats, most = (_WARM_CALLS, len(calls)) if graph else (1, _MOST_EAGER_SETS)
    return {warm: Work(calls[:1] * repeats, graph), cold: Work(calls[:most], graph, keep=graph)}


def _compiled(plain: Callable[..., object], inputs: Inputs) -> Callable[..., object]:
    """`plain` through torch.compile for the shapes of `inputs`, which have been run.

    Compilers keep a few versions of one function and fall back to eager beyond, so each shape starts afresh.
    """
    torch._dynamo.reset()
    compiled = torch.compile(plain, dynamic=False)
    for _ in range(2):
        compiled(*inputs)
    return compiled


def time_call(
    call: KernelCall, n_bytes: int, device: torch.device, take: Timer, progress: Progress, *, compiled: bool
) -> dict[str, Timing]:
    """Timings of one call, named as `kernel_row` wants them; `progress` is told where compiling plain PyTorch fails."""
    sets = input_sets(call.inputs, n_bytes, l2_bytes(device))
    works = {
        **_works(call.run, sets, "", graph=device.type == "cuda"),
        **_works(call.plain, sets, "plain", graph=False),
    }
    if compiled:
        try:
            works |= _works(_compiled(call.plain, sets[0]), sets, "compiled", graph=False)
        except Exception as error:  # compilers raise anything, and a comparison must not cost the measurement
            progress(f"block {call.block}, {call.name}: plain PyTorch is not compiled: {error}")
    return take(works)


def time_encoder(
    encoder: Encoder, take: Timer, progress: Progress, found: Callable[[KernelRow], None] = lambda _: None
) -> tuple[list[KernelRow], MarginalRow | None]:
    """Every row of one encoder, and what merging costs; None where nothing merges.

    found  is given each row as soon as it is there
    """
    device, size = encoder.device, encoder.recipe.backbone.image_size
    module = VideoEncoder(encoder.recipe, DTYPES[encoder.dtype]).to(device)
    frames = torch.randn(encoder.batch, encoder.recipe.profile.frames, 3, size, size, device=device)
    calls = list(merging_calls(fused_calls(module, frames)))
    chosen = one_of_each_kind(calls) if encoder.compiled is None else encoder.compiled
    copy, copied = copy_work(device)
    copy_gb_s = copied / take({"copy": copy})["copy"].p50 / 1e9
    rows = []
    for call in calls:
        progress(f"{encoder}: block {call.block}, {call.name}")
        with torch.inference_mode():
            n_bytes = moved_bytes(call.inputs, call.run(*call.inputs))
        times = time_call(call, n_bytes, device, take, progress, compiled=call.block in chosen)
        rows.append(kernel_row(encoder, call, n_bytes, times, copy_gb_s))
        found(rows[-1])
    if not rows:
        return [], None
    progress(f"{encoder}: the whole encoder")
    whole = take({"encode": Work((torch.no_grad()(partial(module, frames)),), graph=True)})["encode"].p50
    return rows, marginal_row(rows, whole)


def drawn_encoders(
    profiles: Iterable[Profile], batches: Sequence[int], dtypes: Sequence[str], device: torch.device, progress: Progress
) -> Iterator[Encoder]:
    """Encoders of the profiles with random weights, at every batch size and dtype.

    Raises ProfileError for a profile that takes its sizes from a checkpoint.
    """
    for profile in profiles:
        progress(f"{profile.name}: drawing weights")
        recipe = prepare(draw_checkpoint(profile, 0), profile)
        yield from (Encoder(recipe, batch, dtype, device) for batch in batches for dtype in dtypes)


def time_encoders(encoders: Iterable[Encoder], take: Timer, progress: Progress) -> dict[str, list[dict[str, Any]]]:
    """Every fused call of the encoders, and what merging costs them, as plain values."""
    found: dict[str, list[dict[str, Any]]] = {"kernels": [], "marginals": []}
    for encoder in encoders:
        rows, marginal = time_encoder(encoder, take, progress)
        found["kernels"] += map(dataclasses.asdict, rows)
        found["marginals"] += [] if marginal is None else [dataclasses.asdict(marginal)]
    return found
