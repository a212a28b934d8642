"""GPU resources of each kernel: registers, spills and shared memory, compiled for every target without one."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tempme_export.bench.counting.shapes import shape_frames, shape_recipe
from tempme_export.bench.kernels.calls import fused_calls, launches_of
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.model import VideoEncoder
from tempme_export.encoder.profile import FROM_CHECKPOINT, Profile
from tempme_export.errors import BackendError, UsageError
from tempme_export.kernels import aot

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class ResourceRow:
    """One kernel compiled for one target. Registers are per thread, spills bytes per thread, `shared` bytes.

    dtype         of its first input
    compiled_for  shapes of its inputs
    """

    kernel: str
    dtype: str
    target: str
    compiled_for: str
    num_warps: int
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        return dataclasses.asdict(self)


def _require_triton() -> None:
    if importlib.util.find_spec("triton") is None:
        raise BackendError("Triton, which compiles the kernels, is not installed. Run: pip install triton")


def triton_version() -> str:
    """Of the compiler. Raises BackendError without it."""
    _require_triton()
    from importlib.metadata import version

    return version("triton")


def _size(launch: aot.Launch) -> tuple[int, int]:
    return len(launch.variant.arguments), sum(math.prod(one.shape) for one in launch.inputs)


def encoder_launches(profile: Profile, dtype: torch.dtype) -> tuple[aot.Launch, ...]:
    """The launches of one forward of the video tower at the usual batch size, in order: the encoder runs on shapes
    alone, and its fused calls are given to the launchers.

    dtype  of the tokens; LayerNorm parameters stay float32
    Raises UsageError for a profile that takes its sizes from a checkpoint.
    """
    if profile.backbone == FROM_CHECKPOINT:
        raise UsageError(
            f"profile {profile.name} takes its sizes from a checkpoint, and kernels are compiled for known ones. "
            "Choose a profile that names its backbone."
        )
    recipe = shape_recipe(profile, open_clip_backbone(profile.backbone))
    return launches_of(fused_calls(VideoEncoder(recipe, dtype), shape_frames(recipe, profile.batch.opt)))


def representative_launches(profile: Profile, dtype: torch.dtype) -> list[aot.Launch]:
    """Of each kernel the profile's launch with the most options, at its largest. Raises as `encoder_launches`."""
    largest: dict[str, aot.Launch] = {}
    for launch in encoder_launches(profile, dtype):
        name = launch.variant.name
        if name not in largest or _size(launch) > _size(largest[name]):
            largest[name] = launch
    return list(largest.values())


def compile_rows(
    profile: Profile,
    progress: Callable[[str], None],
    dtypes: Sequence[torch.dtype] = DTYPES,
    targets: Sequence[str] = aot.TARGETS,
    kernels: Container[str] | None = None,
) -> list[ResourceRow]:
    """Compile each kernel of a profile, or some, for every target; `progress` is told what is being compiled.

    Raises BackendError without Triton, UsageError as `encoder_launches`.
    """
    _require_triton()
    rows, done = [], set()
    for dtype in dtypes:
        for launch in representative_launches(profile, dtype):
            variant = launch.variant
            if variant in done or (kernels is not None and variant.name not in kernels):
                continue  # done is a kernel that reads no tokens of the profile's dtype
            done.add(variant)
            for target in targets:
                progress(f"compiling {variant.name}, {variant.dtype}, for {target}")
                rows.append(_row(launch, target))
    return rows


def _row(launch: aot.Launch, target: str) -> ResourceRow:
    built = aot.compile(launch.variant, target)
    shapes = [f"{one.name} {' x '.join(map(str, one.shape))}" for one in launch.inputs if len(one.shape) > 1]
    return ResourceRow(
        kernel=launch.variant.name,
        dtype=launch.variant.dtype,
        target=target,
        compiled_for=", ".join(shapes),
        num_warps=built.num_warps,
        **dataclasses.asdict(built.resources),
    )
