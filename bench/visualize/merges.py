"""Patches that became one token: the merges of one video, composed from `assign`.

The rules are those of spec sections 3 and 4: clips join with all class tokens first, then all patches
clip by clip; a merge sends every token to the row that `assign` names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tempme_export.artifacts import registry
from tempme_export.artifacts.backend import Backend, Reveals, Setting
from tempme_export.artifacts.bundle import Bundle, folder_of, open_bundle
from tempme_export.bench.cases import Case
from tempme_export.encoder.schedule import BlockSchedule, Schedule, ScheduledMerge
from tempme_export.errors import InputError
from tempme_export.media.preprocess import preprocess_for, preprocess_in
from tempme_export.media.video import read_frames
from tempme_export.runtime.base import Runner


@dataclass(frozen=True)
class Stage:
    """Merges up to the end of one block.

    title   block, clips and tokens in words
    groups  int64 [F, grid, grid]: the token that each patch belongs to, as its row among all tokens of the video,
            clip by clip and class tokens first in each
    clips   of the video
    tokens  of the video, class tokens included
    """

    title: str
    groups: NDArray[np.int64]
    clips: int
    tokens: int

    @property
    def patch_tokens(self) -> int:
        """Tokens that patches became: `tokens` without the class tokens."""
        return len(np.unique(self.groups))


@dataclass(frozen=True)
class VideoMerges:
    """One video and what became of its patches.

    frames  uint8 [F, S, S, 3]: the pictures that the encoder saw
    origin  the graph or the weights that decided, for people to read
    """

    frames: NDArray[np.uint8]
    stages: tuple[Stage, ...]
    origin: str


def drawn_blocks(schedule: Schedule) -> tuple[int, ...]:
    """Blocks after which a stage is drawn: the last one before clips join, every one that joins them, the last one."""
    joining = [block.index for block in schedule.blocks if block.factor > 1]
    last = len(schedule.blocks) - 1
    within = range(joining[0]) if joining else ()
    merged_before = any(schedule.blocks[index].r_intra for index in within)
    return tuple(sorted({*([joining[0] - 1] if merged_before else []), *joining, last}))


def merge_stages(assigns: Sequence[NDArray[np.int32]], schedule: Schedule, grid: int) -> list[Stage]:
    """Follow every patch of one video through all merges.

    assigns  one int32 [clips, N] for every merge of `schedule`, in execution order: the row each token goes to
    grid     patches along one side of a frame
    Raises InputError where these are not the assignments of one video under this schedule.
    """
    if grid**2 + 1 != schedule.tokens_per_frame:
        raise InputError(
            f"found {grid} x {grid} patches a frame, expected {schedule.tokens_per_frame - 1}, as in the schedule."
        )
    if len(assigns) != len(schedule.merges):
        raise InputError(f"found {len(assigns)} assignments, expected {len(schedule.merges)}, one for every merge.")
    frames, patches = schedule.frames, grid**2
    clip = np.repeat(np.arange(frames), patches).reshape(frames, patches)
    row = np.tile(1 + np.arange(patches), (frames, 1))
    of_merge = {
        (merge.block, merge.kind): _checked(assign, merge, schedule)
        for merge, assign in zip(schedule.merges, assigns, strict=True)
    }
    drawn, stages = drawn_blocks(schedule), []
    for block in schedule.blocks:
        clip, row = _join(clip, row, block)
        for kind in ("cross", "intra"):
            if (block.index, kind) in of_merge:
                row = of_merge[block.index, kind][clip, row]
        if block.index in drawn:
            groups = (clip * block.tokens_mlp + row).reshape(frames, grid, grid)
            stages.append(Stage(_title(block), groups, block.clips, block.clips * block.tokens_mlp))
    return stages


def _checked(assign: NDArray[np.int32], merge: ScheduledMerge, schedule: Schedule) -> NDArray[np.int64]:
    """The assignment as int64. Raises InputError where it is not a map onto all rows that the merge leaves."""
    block = schedule.blocks[merge.block]
    tokens = block.tokens_attention + (merge.r if merge.kind == "cross" else 0)
    if assign.shape != (block.clips, tokens):
        raise InputError(
            f"{merge.assign_name}: found shape {list(assign.shape)}, expected {[block.clips, tokens]}, "
            "clips and tokens of one video."
        )
    rows = np.arange(tokens - merge.r)
    if not all(np.array_equal(np.unique(clip), rows) for clip in assign):
        raise InputError(
            f"{merge.assign_name}: found rows {assign.min()} to {assign.max()}, expected every row from 0 to "
            f"{len(rows) - 1} in every clip."
        )
    return assign.astype(np.int64)


def _join(
    clip: NDArray[np.int64], row: NDArray[np.int64], block: BlockSchedule
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Position of each patch once `factor` adjacent clips are one, before their merge: behind all class tokens."""
    n_cls = block.n_cls // block.factor
    before = clip % block.factor * (block.tokens_in - n_cls)
    return clip // block.factor, block.n_cls + before + row - n_cls


def _title(block: BlockSchedule) -> str:
    clips = "1 clip" if block.clips == 1 else f"{block.clips} clips"
    return f"after block {block.index}: {clips} of {block.tokens_mlp} tokens"


def video_merges(
    model: Case | Bundle, video: Path, allow_damaged: bool = False, backend: Backend | None = None
) -> VideoMerges:
    """Run one video and follow its patches.

    model  a bundle's own graph decides, whether it was exported with --expose-merges or not; without a bundle the
           original path does
    allow_damaged  take damaged pictures as the decoder shows them
    backend  runs the graph; None: the first that reveals the values inside
    Raises VideoError for a file that cannot be read, and BundleError or BackendError for a graph that cannot be run.
    """
    if isinstance(model, Case) and model.bundle is not None:
        model = open_bundle(model.bundle)
    if isinstance(model, Bundle):
        patch, schedule, preprocess = model.manifest["backbone"]["patch"], model.schedule, preprocess_in(model.manifest)
    else:
        schedule, patch, preprocess = model.recipe.schedule, model.recipe.backbone.patch, preprocess_for(model.recipe)
    frames = preprocess.crop(read_frames(video, schedule.frames, allow_damaged=allow_damaged))
    pixels = preprocess.normalise(frames)[None]
    if isinstance(model, Bundle):
        assigns, origin = _graph_assigns(model, pixels, backend or _revealing())
    else:
        assigns, origin = _original_assigns(model, pixels), f"the original path with {model.weights}"
    return VideoMerges(frames, tuple(merge_stages(assigns, schedule, preprocess.size // patch)), origin)


def _revealing() -> Backend:
    return next(one for one in registry.BACKENDS if one.reveals is Reveals.VALUES)


def _graph_assigns(
    bundle: Bundle, pixels: NDArray[np.float32], backend: Backend
) -> tuple[list[NDArray[np.int32]], str]:
    """Every assignment of the video tower for [1, F, 3, S, S], and what decided."""
    names = tuple(merge.assign_name for merge in bundle.schedule.merges)
    folder = folder_of(bundle)
    device = backend.devices[0]
    setting = Setting(device, extra_outputs=() if bundle.manifest.get("trace") else names)
    with backend.open(folder, setting) as runner:
        found = runner.infer(_inputs(runner, pixels))
    origin = f"{bundle.path / backend.artifact.file} under {backend.describe(folder, device)}"
    return [found[name].astype(np.int32) for name in names], origin


def _inputs(runner: Runner, pixels: NDArray[np.float32]) -> dict[str, NDArray[np.generic]]:
    inputs: dict[str, NDArray[np.generic]] = {"frames": pixels}
    if "frame_mask" in runner.inputs:
        inputs["frame_mask"] = np.ones(pixels.shape[:2], np.bool_)
    return inputs


def _original_assigns(case: Case, pixels: NDArray[np.float32]) -> list[NDArray[np.int32]]:
    """As `_graph_assigns`, by the original path."""
    import torch

    from tempme_export.encoder.reference import MergeLog, ReferenceVideo

    log = MergeLog()
    ReferenceVideo(case.recipe).frame_features(torch.from_numpy(pixels), log)
    return [step.assign.numpy() for step in log.steps]
