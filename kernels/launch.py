"""Launch configurations as data, and what every launcher shares: checks and the launch itself."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MANY_PROGRAMS = 256  # about two per multiprocessor of a large GPU: from here on throughput counts
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class MatchConfig:
    """Tiles of a match: A tokens per program, B tokens and channels at a time.

    resident  one program matches and selects an item, whose |A| fits block_a and whose rows fit block_c;
              otherwise three kernels split the rows, stream them to score, and select, block_b A tokens at a time
    """

    resident: bool
    block_a: int
    block_b: int
    block_c: int
    num_warps: int
    num_stages: int


STREAMED = MatchConfig(False, 16, 64, 64, num_warps=4, num_stages=2)


@dataclass(frozen=True)
class RowsConfig:
    """Tiles of the merge and of add + LayerNorm: output rows per program, A tokens looked up at a time."""

    block_rows: int
    block_a: int
    num_warps: int


@dataclass(frozen=True)
class AttentionConfig:
    """Tiles of the attention: queries per program, keys at a time."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int = 2


@dataclass(frozen=True)
class Call:
    """One kernel launch as a launcher asks for it: positional arguments, then constants and options by name."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    meta: dict[str, Any]


_recorded: ContextVar[list[Call] | None] = ContextVar("recorded launches", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Call]]:
    """Collect what launchers would launch, and launch nothing; tensors may lie anywhere, on `meta` too."""
    calls: list[Call] = []
    token = _recorded.set(calls)
    try:
        yield calls
    finally:
        _recorded.reset(token)


def power_of_two(n: int, at_least: int = 1) -> int:
    """The smallest power of two not below n and `at_least`, itself a power of two."""
    return max(at_least, 1 << max(n - 1, 0).bit_length())


def _is_many(programs: int | torch.SymInt, limit: int) -> bool:
    """True where throughput counts more than latency. A symbolic count is decided once, by the traced batch: a
    comparison would tie the compiled graph to one side of the limit."""
    hint = (programs.node.hint or 0) if isinstance(programs, torch.SymInt) else programs
    return int(hint) >= limit


def match_config(n_a: int, width: int, items: int, plain: bool) -> MatchConfig:
    """Plain head-wide metrics of up to 256 tokens are matched by one program per item, others are streamed.

    plain  one tensor, nothing to add and nothing to join
    """
    if plain and width <= 64 and n_a <= 128:
        block_a, many = power_of_two(n_a, 16), _is_many(items, MANY_PROGRAMS)
        warps = {(True, True): 2, (True, False): 4, (False, True): 4, (False, False): 8}[block_a <= 32, many]
        return MatchConfig(True, block_a, 32, power_of_two(width, 16), warps, num_stages=1)
    return STREAMED


def rows_config(width: int, n_a: int) -> RowsConfig:
    """One row and one warp per program: a merge and a LayerNorm wait for memory, and more rows wait together."""
    return RowsConfig(1, min(64, power_of_two(n_a, 16)), num_warps=1 if width <= 1024 else 4)


def attention_config(n_tokens: int, dtype: torch.dtype) -> AttentionConfig:
    """Half tiles of keys leave room for more programs; float32 takes half tiles of queries too, for shared memory."""
    if dtype == torch.float32:
        return AttentionConfig(32, 32, num_warps=4, num_stages=1)
    return AttentionConfig(min(64, power_of_two(n_tokens, 16)), 32, num_warps=4)


def match_overlaps_attention(n_a: int, head_width: int) -> bool:
    """True for a match that fits the tiles and warps of an attention program; larger ones take their own launch."""
    return n_a <= 64 and head_width <= 64


@dataclass(frozen=True)
class Tiles:
    """Choosers of the tiles of launches that are given none; by default what ships."""

    match: Callable[[int, int, int, bool], MatchConfig] = match_config
    rows: Callable[[int, int], RowsConfig] = rows_config
    attention: Callable[[int, torch.dtype], AttentionConfig] = attention_config


_SHIPPED = Tiles()
_tiles: ContextVar[Tiles] = ContextVar("choosers of tiles", default=_SHIPPED)


@contextlib.contextmanager
def tiled(by: Tiles) -> Iterator[None]:
    """Within, launches that are given no tiles take these."""
    token = _tiles.set(by)
    try:
        yield
    finally:
        _tiles.reset(token)


def tiles() -> Tiles:
    """The choosers in use here."""
    return _tiles.get()


@functools.cache
def interpreting() -> bool:
    """True where Triton runs its interpreter, which takes tensors of any device."""
    import triton

    return bool(triton.knobs.runtime.interpret)


def check_rows(name: str, x: Tensor, like: Tensor | None = None) -> None:
    """Raise ValueError unless x is [B, N, D] of a dtype and on a device that the kernels take, and like `like`."""
    if x.ndim != 3 or x.dtype not in DTYPES:
        raise ValueError(f"{name} must be [B, N, D] float16, bfloat16 or float32, found {tuple(x.shape)} {x.dtype}.")
    if like is not None and (x.shape, x.dtype, x.device) != (like.shape, like.dtype, like.device):
        raise ValueError(
            f"{name} must be {tuple(like.shape)} {like.dtype} on {like.device}, "
            f"found {tuple(x.shape)} {x.dtype} on {x.device}."
        )
    check_device(name, x)


def check_device(name: str, x: Tensor) -> None:
    """Raise ValueError unless Triton can reach x."""
    if x.device.type != "cuda" and _recorded.get() is None and not interpreting():
        raise ValueError(
            f"{name} is on {x.device}, and Triton kernels need a GPU (or TRITON_INTERPRET=1, set before the start). "
            f"Call the operators of tempme_export.encoder.ops, which run anywhere."
        )


def check_tensor(name: str, x: Tensor, shape: Sequence[int], dtype: torch.dtype | None, like: Tensor) -> Tensor:
    """x; raise ValueError unless it has this shape, dtype (None: any the kernels take) and the device of `like`."""
    dtypes = DTYPES if dtype is None else (dtype,)
    if tuple(x.shape) != tuple(shape) or x.dtype not in dtypes or x.device != like.device:
        accepted = " or ".join(str(one).removeprefix("torch.") for one in dtypes)
        raise ValueError(
            f"{name} must be {tuple(shape)} {accepted} on {like.device}, "
            f"found {tuple(x.shape)} {x.dtype} on {x.device}."
        )
    return x


def check_counts(n_tokens: int, n_cls: int, r: int) -> int:
    """|A|; raise ValueError for an r that cannot be merged."""
    n_a = (n_tokens + 1) // 2 - (n_cls + 1) // 2
    n_b = n_tokens // 2 - n_cls // 2
    if not (0 <= n_cls <= n_tokens and 1 <= r <= n_a and n_b >= 1):
        raise ValueError(
            f"r = {r} of {n_tokens} tokens with {n_cls} class tokens: expected 1 <= r <= |A| = {n_a} and |B| >= 1. "
            "Skip the merge when there is nothing to merge."
        )
    return n_a


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which among several need not be the tensors'."""
    several = device.type == "cuda" and torch.cuda.device_count() > 1
    return torch.cuda.device(device) if several else contextlib.nullcontext()


def launch(kernel: Any, grid: tuple[Any, ...], device: torch.device, *args: Any, **meta: Any) -> None:
    """Launch through torch.library.wrap_triton, so that tracing compilers see the kernel itself."""
    calls = _recorded.get()
    if calls is not None:
        calls.append(Call(kernel, grid, args, meta))
        return
    wrapped = kernel if interpreting() else torch.library.wrap_triton(kernel)
    with _on(device):
        wrapped[grid](*args, **meta)
