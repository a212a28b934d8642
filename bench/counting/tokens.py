"""Tokens per block as a running model has them, held against the schedule that says what they should be."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tempme_export.bench.counting.graph import count_graph
from tempme_export.bench.counting.products import BlockTokens, block_products, tokens_of_schedule
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import InputError, ParityError
from tempme_export.runtime.ort import OrtRunner


def _whole(rows: int, videos: int, block: int) -> int:
    if rows % videos:
        raise ParityError(f"block {block} has {rows} rows for {videos} videos: their clips were mixed up.")
    return rows // videos


def tokens_of_original(reference: ReferenceVideo, frames: Tensor) -> BlockTokens:
    """Run the original path (or a method on it) and read its merge log.

    frames  [B, F, 3, S, S] normalised pixels, with values: merges are decided by them
    A block without an intra merge hands on the tokens that attended; one that drops tokens in another way than by a
    merge (EViT) leaves no steps, and is counted by `count_eager(...).tokens`.
    """
    log = MergeLog()
    reference.frame_features(frames, log)
    entering = {step.block: step.assign.shape[1] for step in log.steps if step.kind == "intra"}
    clips = tuple(_whole(len(after), len(frames), block) for block, after in enumerate(log.tokens))
    mlp = tuple(after.shape[1] for after in log.tokens)
    return BlockTokens(clips, tuple(entering.get(block, tokens) for block, tokens in enumerate(mlp)), mlp)


def tokens_of_encoder(encoder: VideoEncoder, frames: Tensor) -> BlockTokens:
    """Run the fast encoder and read what enters the projections and the MLP of its blocks.

    frames  [B, F, 3, S, S] normalised pixels. Raises ParityError where a block does not run exactly once.
    """
    attention: dict[int, list[tuple[int, ...]]] = {}
    mlp: dict[int, list[tuple[int, ...]]] = {}
    hooks: list[RemovableHandle] = []

    def watch(module: nn.Module, seen: list[tuple[int, ...]]) -> None:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(tuple(inputs[0].shape))

        hooks.append(module.register_forward_pre_hook(note))

    for index, block in enumerate(encoder.blocks):
        watch(block.get_submodule("attn.in_proj"), attention.setdefault(index, []))
        watch(block.get_submodule("mlp"), mlp.setdefault(index, []))
    try:
        with torch.inference_mode():
            encoder(frames)
    finally:
        for hook in hooks:
            hook.remove()
    odd = [index for index in attention if (len(attention[index]), len(mlp[index])) != (1, 1)]
    if odd:
        raise ParityError(f"blocks {odd} did not run exactly once in one call of the fast encoder.")
    return BlockTokens(
        tuple(_whole(seen[0][0], len(frames), index) for index, seen in attention.items()),
        tuple(seen[0][1] for seen in attention.values()),
        tuple(seen[0][1] for seen in mlp.values()),
    )


def tokens_of_artifact(
    path: Path, frames: NDArray[np.float32], load: Callable[..., OrtRunner] = OrtRunner
) -> BlockTokens:
    """Run a video tower's ONNX file with the logits and the MLP's first product of every block as further outputs.

    frames  [B, F, 3, S, S] normalised pixels; every frame counts where the graph takes a mask
    load    path, device and names -> a runner that returns those values too
    Raises InputError for a file in which they are not found, and ParityError where its blocks have other rows in the
    MLP than in attention. What ONNX Runtime raises passes through.
    """
    products = count_graph(path).of_model
    names = []
    for number, (_, logits, mlp) in enumerate(block_products(products, products[0].columns)):
        if logits is None or mlp is None:
            raise InputError(
                f"{path}: block {number} has no {'attention' if logits is None else 'MLP'} of CLIP's kind."
            )
        names += [logits.name, mlp.name]
    with load(path, "cpu", extra_outputs=names) as runner:
        inputs: dict[str, NDArray[np.generic]] = {"frames": frames}
        if "frame_mask" in runner.inputs:
            inputs["frame_mask"] = np.ones(frames.shape[:2], dtype=bool)
        shapes = {name: value.shape for name, value in runner.infer(inputs).items()}
    blocks = [(shapes[a], shapes[b]) for a, b in zip(names[::2], names[1::2], strict=True)]
    uneven = [number for number, (logits, mlp) in enumerate(blocks) if logits[0] != mlp[0]]
    if uneven:
        raise ParityError(f"{path}: blocks {uneven} have other clips in the MLP than in attention.")
    return BlockTokens(
        tuple(_whole(logits[0], len(frames), number) for number, (logits, _) in enumerate(blocks)),
        tuple(logits[-2] for logits, _ in blocks),
        tuple(mlp[-2] for _, mlp in blocks),
    )


def check_tokens(found: BlockTokens, schedule: Schedule, where: str) -> None:
    """Raise ParityError, naming each block that has other clips or tokens than `schedule`.

    where  what ran, for the message
    """
    expected = tokens_of_schedule(schedule)
    if len(found.clips) != len(expected.clips):
        raise ParityError(f"{where} ran {len(found.clips)} blocks, its schedule has {len(expected.clips)}.")
    rows = zip(
        zip(found.clips, found.attention, found.mlp, strict=True),
        zip(expected.clips, expected.attention, expected.mlp, strict=True),
        strict=True,
    )
    wrong = [
        f"block {number}: {has[0]} clips, {has[1]} tokens in attention, {has[2]} in the MLP instead of {needed[0]}, "
        f"{needed[1]}, {needed[2]}"
        for number, (has, needed) in enumerate(rows)
        if has != needed
    ]
    if wrong:
        raise ParityError(f"{where} does not have the tokens of its schedule: {'; '.join(wrong)}.")
