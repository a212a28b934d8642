"""Operations of a video against its frames, by formula, on ViT-B/32 under the paper's settings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tempme_export.bench.paper import CLAIMS
from tempme_export.bench.scaling import even_factors
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.complexity import complexity
from tempme_export.encoder.schedule import MergePolicy, build_schedule
from tempme_export.errors import InputError

FRAMES = (8, 12, 16, 24, 32, 48, 64)
BASE_FRAMES = 12
STAGES = 3
LABELS = ("no merging", "ToMe", "TempMe")


@dataclass(frozen=True)
class Cost:
    """GMACs (the paper's GFLOPs) per video of one method, one figure for each of `frames`."""

    label: str
    frames: tuple[int, ...]
    gmacs: tuple[float, ...]


def factors(frames: int) -> tuple[int, ...]:
    """Factors by which three stages join `frames` clips into one: as equal as can be, as in the paper's settings.

    Raises InputError where three whole factors from 2 up do not exist.
    """
    found = even_factors(frames, STAGES)
    if found is None:
        raise InputError(
            f"found {frames} frames, expected a product of {STAGES} whole factors from 2 up, as {STAGES} stages join "
            f"all clips into one. Choose of: {', '.join(map(str, FRAMES))}."
        )
    return found


def costs(frames: Sequence[int] = FRAMES) -> list[Cost]:
    """Count every method at every number of frames; the settings are those of the paper's Table 1.

    Raises InputError for frames that TempMe cannot join evenly in three stages.
    """
    claims = {claim.label: claim for claim in CLAIMS if (claim.source, claim.frames) == ("Table 1", BASE_FRAMES)}
    counted = []
    for label in LABELS:
        claim = claims[f"{label} B/32"]
        backbone = open_clip_backbone(claim.backbone)
        schedules = [
            build_schedule(
                _for_frames(claim.merge, count),
                layers=backbone.layers,
                frames=count,
                tokens_per_frame=backbone.tokens_per_frame,
            )
            for count in frames
        ]
        counted.append(
            Cost(label, tuple(frames), tuple(complexity(schedule, backbone).gmacs for schedule in schedules))
        )
    return counted


def _for_frames(merge: MergePolicy, frames: int) -> MergePolicy:
    return replace(merge, clip_factors=factors(frames)) if merge.clip_layers else merge
