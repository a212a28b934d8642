"""The library, compiled once for all tests here and called through ctypes as an adapter calls it."""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p

import pytest
import torch

from tempme_export.kernels.native.build import build, find_compiler

STORAGE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
Task = ctypes.CFUNCTYPE(None, c_void_p, c_size_t)
ParallelFor = ctypes.CFUNCTYPE(None, c_void_p, Task, c_size_t, c_void_p)


@ParallelFor
def _backwards(pool, task, count, context):
    """One thread, the last task first: no order is promised."""
    for i in reversed(range(count)):
        task(context, i)


@ParallelFor
def _side_by_side(pool, task, count, context):
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda i: task(context, i), range(count)))


ORDERS = {"backwards": _backwards, "threads": _side_by_side}


class _Run(ctypes.Structure):
    _fields_ = (("parallel_for", ParallelFor), ("pool", c_void_p), ("level", c_int32))


class _Tokens(ctypes.Structure):
    _fields_ = tuple((name, c_int64) for name in ("items", "n_tokens", "n_cls", "r", "factor"))


class _MatchKeys(ctypes.Structure):
    _fields_ = (("tokens", _Tokens), ("heads", c_int64), ("width", c_int64), ("storage", c_int32))
    _fields_ += (("keys", c_void_p), ("assign", c_void_p))


class _SplitRows(ctypes.Structure):
    _fields_ = (("rows", c_int64), ("heads", c_int64), ("width", c_int64), ("storage", c_int32))
    _fields_ += tuple((name, c_void_p) for name in ("x", "delta", "high", "low", "scale"))


class _ScoreRows(ctypes.Structure):
    _fields_ = (("tokens", _Tokens), ("width", c_int64))
    _fields_ += tuple((name, c_void_p) for name in ("high", "low", "scale", "best", "best_b"))


class _SelectRows(ctypes.Structure):
    _fields_ = (("tokens", _Tokens), ("best", c_void_p), ("best_b", c_void_p), ("assign", c_void_p))


class _MergeNorm(ctypes.Structure):
    _fields_ = (("tokens", _Tokens), ("width", c_int64), ("n_positions", c_int64), ("storage", c_int32))
    _fields_ += (("epsilon", c_float),)
    _fields_ += tuple((name, c_void_p) for name in ("x", "delta", "size", "assign", "position", "weight", "bias"))
    _fields_ += tuple((name, c_void_p) for name in ("merged", "normed", "sizes", "log_sizes"))


def _at(tensor):
    """Address of a contiguous tensor; None of none."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return tensor.data_ptr()


class Core:
    """The operators on contiguous tensors; `level` and `order` say how they run. Raises ValueError as they refuse."""

    def __init__(self, path):
        self._library = ctypes.CDLL(str(path))
        for name in ("match_keys", "split_rows", "score_rows", "select_rows", "merge_norm"):
            getattr(self._library, f"tempme_{name}").restype = c_char_p
        self.levels = range(self._library.tempme_level() + 1)

    def _call(self, name, job, level, order):
        run = _Run(ORDERS[order], None, 99 if level is None else level)
        refusal = getattr(self._library, f"tempme_{name}")(POINTER(type(job))(job), POINTER(_Run)(run))
        if refusal is not None:
            raise ValueError(refusal.decode())

    def match_keys(self, keys, heads, n_cls, r, level=None, order="backwards"):
        """keys [B, N, heads * C] -> assign [B, N]."""
        items, n_tokens, width = keys.shape
        assign = torch.full((items, n_tokens), -1, dtype=torch.int32)
        tokens = _Tokens(items, n_tokens, n_cls, r, 1)
        job = _MatchKeys(tokens, heads, width // heads, STORAGE[keys.dtype], _at(keys), _at(assign))
        self._call("match_keys", job, level, order)
        return assign

    def split_rows(self, x, delta=None, heads=1, level=None, order="backwards"):
        """x [C, n, heads * W] -> high, low [C, n, W], scale [C, n]."""
        clips, tokens, width = x.shape
        high, low = (torch.full((clips, tokens, width // heads), torch.nan, dtype=torch.float16) for _ in range(2))
        scale = torch.full((clips, tokens), torch.nan)
        counts = clips * tokens, heads, width // heads, STORAGE[x.dtype]
        job = _SplitRows(*counts, *map(_at, (x, delta, high, low, scale)))
        self._call("split_rows", job, level, order)
        return high, low, scale

    def score_rows(self, rows, factor, n_cls, level=None, order="backwards"):
        """What a split wrote -> best and best_b [B, |A|]."""
        clips, tokens, width = rows[0].shape
        items, n_tokens = clips // factor, tokens * factor
        n_a = (n_tokens + 1) // 2 - (n_cls + 1) // 2
        best, best_b = torch.full((items, n_a), torch.nan), torch.full((items, n_a), -1, dtype=torch.int32)
        job = _ScoreRows(_Tokens(items, n_tokens, n_cls, -1, factor), width, *map(_at, (*rows, best, best_b)))
        self._call("score_rows", job, level, order)
        return best, best_b

    def select_rows(self, best, best_b, n_tokens, n_cls, r, level=None, order="backwards"):
        """The best of each A token -> assign [B, N]."""
        assign = torch.full((len(best), n_tokens), -1, dtype=torch.int32)
        job = _SelectRows(_Tokens(len(best), n_tokens, n_cls, r, 1), *map(_at, (best, best_b, assign)))
        self._call("select_rows", job, level, order)
        return assign

    def merge_norm(self, x, delta, size, assign, position, norm, factor, n_cls, r, level=None, order="backwards"):
        """As `kernels.merge.merge_norm`, norm = (weight, bias)."""
        clips, tokens, width = x.shape
        items, n_out = clips // factor, tokens * factor - r
        merged, normed = (torch.full((items, n_out, width), torch.nan, dtype=x.dtype) for _ in range(2))
        sizes, log_sizes = (torch.full((items, n_out), torch.nan) for _ in range(2))
        counts = _Tokens(items, tokens * factor, n_cls, r, factor), width, 0 if position is None else len(position)
        given, made = (x, delta, size, assign, position, *norm), (merged, normed, sizes, log_sizes)
        job = _MergeNorm(*counts, STORAGE[x.dtype], 1e-5, *map(_at, (*given, *made)))
        self._call("merge_norm", job, level, order)
        return made


@pytest.fixture(scope="session")
def compiler():
    """Path of the C++ compiler; skips where there is none."""
    found = find_compiler()
    if found is None:
        pytest.skip("no C++ compiler is installed")
    return found


@pytest.fixture(scope="session")
def library(compiler, tmp_path_factory):
    """Path of the library, its objects beside it."""
    folder = tmp_path_factory.mktemp("native")
    build(compiler, folder / "library.so", folder)
    return folder / "library.so"


@pytest.fixture(scope="session")
def objects(library):
    """What a program needs to call the core without a runtime."""
    return [path for path in sorted(library.parent.glob("*.o")) if path.name != "ort.o"]


@pytest.fixture(scope="session")
def core(library):
    """The operators."""
    return Core(library)
