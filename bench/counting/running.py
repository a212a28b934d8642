"""Products that the candidates of a comparison run, counted on themselves before they are timed."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tempme_export.bench.core.candidate import Entry
from tempme_export.bench.counting.flops import count_eager
from tempme_export.bench.counting.graph import count_graph
from tempme_export.bench.counting.products import BlockTokens, Parts, Products, check_tokens, parts_of
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.reference import ReferenceVideo
from tempme_export.errors import ParityError
from tempme_export.runtime.pytorch import TorchRunner

COMPILED = "compiled code cannot be watched; its embeddings are judged all the same"


@dataclass(frozen=True)
class Running:
    """One candidate as it runs.

    tokens   per block; None where it cannot be watched, and `reason` says why
    parts    multiply-accumulates of a video by part; None likewise
    reason   why something was not counted; empty where all was
    """

    candidate: str
    profile: str
    method: str
    frames: int
    tokens: BlockTokens | None
    parts: Parts | None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        blocks = {"clips": None, "attention": None, "mlp": None} if self.tokens is None else self.tokens.to_dict()
        return {
            "candidate": self.candidate,
            "profile": self.profile,
            "method": self.method,
            "frames": self.frames,
            **blocks,
            "product_gmacs": None if self.parts is None else self.parts.products / 1e9,
            "merging_gmacs": None if self.parts is None else self.parts.merging / 1e9,
            "reason": self.reason,
        }


def count_candidates(candidates: Iterable[Entry], clip: NDArray[np.float32]) -> list[Running]:
    """Run each candidate on one clip [1, F, 3, S, S] and count its tokens and products; those of a graph by its shapes.

    Raises ParityError where tokens are not those of the candidate's schedule, or products not those of its formula.
    """
    count_file = functools.cache(count_graph)
    return [_checked(_running(one, _products(one, clip, count_file)), one) for one in candidates]


def _products(one: Entry, clip: NDArray[np.float32], count_file: Callable[[Path], Products]) -> Products | None:
    """None for what cannot be watched."""
    if one.onnx is not None:
        return count_file(one.onnx)
    if not (isinstance(one.runner, TorchRunner) and isinstance(one.runner.module, ReferenceVideo | VideoEncoder)):
        return None
    (frames,) = one.runner.to_device({"frames": clip})
    return count_eager(one.runner.module, frames)


def _running(one: Entry, products: Products | None) -> Running:
    profile, width = one.case.profile, one.case.recipe.backbone.width
    tokens, parts = (None, None) if products is None else (products.tokens(width), products.parts(width))
    reason = COMPILED if products is None else ""
    return Running(one.name, profile.name, one.case.method_key, profile.frames, tokens, parts, reason)


def _checked(found: Running, one: Entry) -> Running:
    if found.tokens is not None:
        check_tokens(found.tokens, one.case.schedule, f"{one.name} ({one.case.profile.name})")
    if found.parts is not None:
        formula = parts_of(one.case.counted())
        if found.parts.products != formula.products:
            raise ParityError(
                f"{one.name} ({one.case.profile.name}) runs {found.parts.products} multiply-accumulates per video in "
                f"its products, its formula says {formula.products}: what runs is not what the formula describes."
            )
    return found
