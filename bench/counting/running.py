"""Products that the candidates of a comparison run, counted on themselves before they are timed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tempme_export.bench.core.candidate import Entry
from tempme_export.bench.counting.flops import MERGING, count_eager
from tempme_export.bench.counting.graph import count_graph
from tempme_export.bench.counting.products import BlockTokens, Parts, parts_of
from tempme_export.bench.counting.tokens import check_tokens, tokens_of_artifact, tokens_of_encoder
from tempme_export.bench.methods.encoders import EvitVideo, class_attention, keep_attentive
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
    """Run each candidate on one clip [1, F, 3, S, S] and count its tokens and products.

    Raises ParityError where tokens are not those of the candidate's schedule, or products not those of its formula.
    """
    of_files: dict[Path, tuple[BlockTokens, Parts]] = {}

    def of_file(path: Path, width: int) -> tuple[BlockTokens, Parts]:
        if path not in of_files:
            of_files[path] = tokens_of_artifact(path, clip), count_graph(path).parts(width)
        return of_files[path]

    return [_checked(_count(one, clip, of_file), one) for one in candidates]


def _count(one: Entry, clip: NDArray[np.float32], of_file: Callable[[Path, int], tuple[BlockTokens, Parts]]) -> Running:
    name, profile, runner = one.name, one.case.profile, one.runner
    tokens: BlockTokens | None = None
    parts: Parts | None = None
    reason, width = "", one.case.recipe.backbone.width
    if one.onnx is not None:
        tokens, parts = of_file(one.onnx, width)
    elif not isinstance(runner, TorchRunner):
        reason = COMPILED
    else:
        (frames,) = runner.to_device({"frames": clip})
        module = runner.module
        if isinstance(module, ReferenceVideo):
            products = count_eager(module, frames, merging=_merging(module))
            tokens, parts = products.tokens(width), products.parts(width)
        elif isinstance(module, VideoEncoder):
            tokens, parts = tokens_of_encoder(module, frames), count_eager(module, frames).parts(width)
        else:
            reason = COMPILED
    return Running(name, profile.name, one.case.method_key, profile.frames, tokens, parts, reason)


def _merging(module: torch.nn.Module) -> Any:
    """Products that choose and merge tokens, which the paper charges to no method."""
    return (*MERGING, class_attention, keep_attentive) if isinstance(module, EvitVideo) else MERGING


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
