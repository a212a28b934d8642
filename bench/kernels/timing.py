"""`tempme-bench kernels`: time of each fused call, its share of the memory's speed, and what merging
costs an encoder.

Ours are replayed from CUDA graphs, as in a deployed encoder. Plain PyTorch and its torch.compile are called as they
are, launches included: the reference picks its sets with a mask, which a graph cannot hold.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tempme_export.bench.candidates import DTYPES
from tempme_export.bench.core.clocks import Timer, Work, copy_work, l2_bytes, timer
from tempme_export.bench.core.protocol import Protocol
from tempme_export.bench.core.timing import Timing
from tempme_export.bench.kernels.cases import Inputs, KernelCall, kernel_calls
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

Progress = Callable[[str], None]


@dataclass(frozen=True)
class KernelRow:
    """One fused call of one block. Times are microseconds per call, rates 1e9 bytes per second.

    sign            +1 where it is there because tokens merge, -1 for what would run in its place without
    shape           of the tokens it reads
    mbytes          that it has to move, in 1e6, by `traffic`
    warm_us         inputs as the last call left them in the L2 cache; cold_us: out of memory; each with its
                    20th and 80th percentile
    share_of_copy   cold_gb_s over that of a copy within the device's memory, measured beside it
    plain_us        plain PyTorch, eager; compiled_us: the same through torch.compile; None where not measured
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

    @property
    def times_as_fast(self) -> float:
        """As plain PyTorch, both out of memory."""
        return self.plain_cold_us / self.cold_us


@dataclass(frozen=True)
class MarginalRow:
    """Cost of merging to an encoder: its calls, less what would run in their place, summed over the blocks.

    encode_ms   the whole encoder, replayed from a CUDA graph; None where it was not measured
    warm, cold  milliseconds, and their shares of encode_ms; each block's sum in microseconds
    """

    profile: str
    batch: int
    dtype: str
    encode_ms: float | None
    warm_ms: float
    cold_ms: float
    warm_share: float | None
    cold_share: float | None
    warm_us_by_block: dict[int, float]
    cold_us_by_block: dict[int, float]


@dataclass(frozen=True)
class KernelSettings:
    """Timing asked for. Blocks of `compiled` go through torch.compile too, seconds per call; None: one of each kind."""

    profiles: tuple[Profile, ...]
    batches: tuple[int, ...]
    dtypes: tuple[str, ...]
    device: torch.device
    protocol: Protocol
    compiled: tuple[int, ...] | None = None


@dataclass(frozen=True)
class KernelReport:
    """All rows of a run."""

    rows: tuple[KernelRow, ...]
    marginals: tuple[MarginalRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """The run as plain values."""
        return {
            "kernels": [dataclasses.asdict(row) for row in self.rows],
            "marginals": [dataclasses.asdict(row) for row in self.marginals],
        }


def require_gpu() -> torch.device:
    """The current CUDA device. Raises BackendError without one."""
    if not torch.cuda.is_available():
        raise BackendError(
            "there is nothing to time: kernels run on a GPU, and torch finds none. What they take of one is compiled "
            "without it: tempme-bench kernels --resources"
        )
    return torch.device("cuda", torch.cuda.current_device())


def check_dtypes(names: Iterable[str]) -> None:
    """Raise UsageError for a dtype that kernels do not take."""
    unknown = [name for name in names if name not in DTYPES]
    if unknown:
        raise UsageError(f"--dtype: found {', '.join(unknown)}, expected of {', '.join(DTYPES)}.")


def kernel_row(
    profile: str, batch: int, dtype: str, call: KernelCall, times: Mapping[str, Timing], copy_gb_s: float
) -> KernelRow:
    """A row from the timings `warm`, `cold`, `plain`, `plain cold` and, if there, `compiled` and `compiled cold`."""
    warm, cold = times["warm"], times["cold"]
    compiled, compiled_cold = times.get("compiled"), times.get("compiled cold")
    cold_gb_s = call.n_bytes / cold.p50 / 1e9
    return KernelRow(
        profile=profile,
        batch=batch,
        dtype=dtype,
        block=call.block,
        kernel=call.name,
        sign=call.sign,
        shape=call.shape,
        mbytes=call.n_bytes / 1e6,
        warm_us=warm.p50 * 1e6,
        warm_p20_us=warm.percentile(20) * 1e6,
        warm_p80_us=warm.percentile(80) * 1e6,
        cold_us=cold.p50 * 1e6,
        cold_p20_us=cold.percentile(20) * 1e6,
        cold_p80_us=cold.percentile(80) * 1e6,
        warm_gb_s=call.n_bytes / warm.p50 / 1e9,
        cold_gb_s=cold_gb_s,
        copy_gb_s=copy_gb_s,
        share_of_copy=cold_gb_s / copy_gb_s,
        plain_us=times["plain"].p50 * 1e6,
        plain_cold_us=times["plain cold"].p50 * 1e6,
        compiled_us=None if compiled is None else compiled.p50 * 1e6,
        compiled_cold_us=None if compiled_cold is None else compiled_cold.p50 * 1e6,
    )


def marginal_row(rows: Sequence[KernelRow], encode_s: float | None) -> MarginalRow:
    """Cost of merging: the signed sum of `rows`, which share profile, batch and dtype. `encode_s` in seconds."""
    first = rows[0]
    warm: dict[int, float] = {}
    cold: dict[int, float] = {}
    for row in rows:
        warm[row.block] = warm.get(row.block, 0.0) + row.sign * row.warm_us
        cold[row.block] = cold.get(row.block, 0.0) + row.sign * row.cold_us
    warm_ms, cold_ms = sum(warm.values()) / 1e3, sum(cold.values()) / 1e3
    encode_ms = None if encode_s is None else encode_s * 1e3
    return MarginalRow(
        profile=first.profile,
        batch=first.batch,
        dtype=first.dtype,
        encode_ms=encode_ms,
        warm_ms=warm_ms,
        cold_ms=cold_ms,
        warm_share=None if encode_ms is None else warm_ms / encode_ms,
        cold_share=None if encode_ms is None else cold_ms / encode_ms,
        warm_us_by_block=warm,
        cold_us_by_block=cold,
    )


def one_of_each_kind(calls: Iterable[KernelCall]) -> tuple[int, ...]:
    """The first block that merges within clips and has sizes, and the first that joins clips."""
    within = [call.block for call in calls if call.name == "attention_match"]
    across = [call.block for call in calls if call.name == "match_clips"]
    return tuple(sorted({*within[1:2], *across[:1]}))


def _copies(inputs: Inputs) -> Inputs:
    return tuple(one.clone() if isinstance(one, Tensor) and one.ndim > 1 else one for one in inputs)


def input_sets(call: KernelCall, device: torch.device) -> list[Inputs]:
    """The inputs of a call, and as many copies of them as push one another out of the L2 cache.

    LayerNorm parameters are shared: in an encoder they are as small beside the tokens.
    """
    n = math.ceil(_L2_TIMES * l2_bytes(device) / call.n_bytes) + 1
    first = call.draw(device)
    return [first, *(_copies(first) for _ in range(min(_MOST_SETS, n) - 1))]


def inferring(run: Callable[..., object]) -> Callable[..., object]:
    """`run` in inference mode."""

    def call(*args: Any) -> object:
        with torch.inference_mode():
            return run(*args)

    return call


def _works(run: Callable[..., object], sets: Sequence[Inputs], name: str, *, graph: bool) -> dict[str, Work]:
    warm, cold = ("warm", "cold") if name == "" else (name, f"{name} cold")
    first = partial(run, *sets[0])
    repeats = _WARM_CALLS if graph else 1
    return {
        warm: Work((first,) * repeats, graph=graph),
        cold: Work(tuple(partial(run, *one) for one in sets[: None if graph else _MOST_EAGER_SETS]), graph, keep=graph),
    }


def _compiled(plain: Callable[..., object], inputs: Inputs) -> Callable[..., object]:
    """`plain` through torch.compile for the shapes of `inputs`, which have been run.

    Compilers keep a few versions of one function and fall back to eager beyond, so each shape starts afresh.
    """
    torch._dynamo.reset()
    compiled = torch.compile(plain, dynamic=False)

    def call(*args: Any) -> object:
        with torch.no_grad():
            return compiled(*args)

    for _ in range(2):
        call(*inputs)
    return call


def time_call(
    call: KernelCall, device: torch.device, take: Timer, progress: Progress, *, compiled: bool
) -> dict[str, Timing]:
    """Timings of one call, named as `kernel_row` wants them; `progress` is told where compiling plain PyTorch fails."""
    sets = input_sets(call, device)
    works = {
        **_works(inferring(call.run), sets, "", graph=device.type == "cuda"),
        **_works(inferring(call.plain), sets, "plain", graph=False),
    }
    if compiled:
        try:
            works |= _works(_compiled(call.plain, sets[0]), sets, "compiled", graph=False)
        except Exception as error:  # compilers raise anything, and a comparison must not cost the measurement
            progress(f"block {call.block}, {call.name}: plain PyTorch is not compiled: {error}")
    return take(works)


def copy_gb_s(device: torch.device, take: Timer) -> float:
    """1e9 bytes per second of a copy within the device's memory, reading and writing counted."""
    work, moved = copy_work(device)
    return moved / take({"copy": work})["copy"].p50 / 1e9


def encode_s(recipe: Recipe, batch: int, dtype: str, device: torch.device, take: Timer) -> float:
    """Seconds per call of the whole fused encoder, replayed from a CUDA graph."""
    from tempme_export.encoder.model import VideoEncoder

    encoder = VideoEncoder(recipe, DTYPES[dtype]).to(device)
    size = recipe.backbone.image_size
    frames = torch.randn(batch, recipe.profile.frames, 3, size, size, device=device)
    work = Work((partial(inferring(encoder), frames),), graph=True)
    return take({"encode": work})["encode"].p50


def profile_rows(
    recipe: Recipe,
    batch: int,
    dtype: str,
    settings: KernelSettings,
    take: Timer,
    progress: Progress,
    found: Callable[[KernelRow], None] = lambda _: None,
) -> tuple[list[KernelRow], MarginalRow | None]:
    """Every row of one profile, batch and dtype, and what merging costs; None where nothing merges.

    found  is given each row as soon as it is there
    """
    merge, backbone, device = recipe.profile.merge, recipe.backbone, settings.device
    calls = kernel_calls(
        recipe.schedule,
        backbone.width,
        backbone.heads,
        batch,
        DTYPES[dtype],
        size_bias=merge.size_bias,
        clip_position=merge.clip_position,
    )
    chosen = one_of_each_kind(calls) if settings.compiled is None else settings.compiled
    copied = copy_gb_s(device, take)
    rows = []
    for call in calls:
        progress(f"{recipe.profile.name}, batch {batch}, {dtype}: block {call.block}, {call.name}")
        times = time_call(call, device, take, progress, compiled=call.block in chosen)
        rows.append(kernel_row(recipe.profile.name, batch, dtype, call, times, copied))
        found(rows[-1])
    if not rows:
        return [], None
    progress(f"{recipe.profile.name}, batch {batch}, {dtype}: the whole encoder")
    return rows, marginal_row(rows, encode_s(recipe, batch, dtype, device, take))


def time_kernels(settings: KernelSettings, progress: Progress, take: Timer | None = None) -> KernelReport:
    """Time every fused call of the profiles, with random weights; `progress` is told what is being timed.

    take  None: by the device's events
    Raises ProfileError for a profile that takes its sizes from a checkpoint.
    """
    take = take or timer(settings.device, settings.protocol)
    rows: list[KernelRow] = []
    marginals: list[MarginalRow] = []
    for profile in settings.profiles:
        progress(f"{profile.name}: drawing weights")
        recipe = prepare(draw_checkpoint(profile, 0), profile)
        for batch in settings.batches:
            for dtype in settings.dtypes:
                timed, marginal = profile_rows(recipe, batch, dtype, settings, take, progress)
                rows += timed
                marginals += [] if marginal is None else [marginal]
    return KernelReport(tuple(rows), tuple(marginals))
