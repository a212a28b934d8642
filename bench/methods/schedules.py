"""Schedules and counts that no merge policy describes: EViT, and attention within frames."""

import dataclasses
import math

from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.complexity import Complexity, complexity
from tempme_export.encoder.schedule import BlockSchedule, Schedule

EVIT_BLOCKS = (3, 6, 9)
"""Blocks that fuse, zero-based: 4, 7 and 10 of the EViT paper."""

EVIT_KEEP = 0.7
"""Share of the patches that stay in each of them."""


def evit_schedule(frames: int, backbone: Backbone, keep: float = EVIT_KEEP) -> Schedule:
    """Token counts of EViT: after the attention of blocks 4, 7 and 10, the class token, the patches that it
    attends to most (`keep` of them, rounded up) and one token fused from the rest remain, in each frame.

    The fused token counts as a patch from there on. Where one patch or none would be left over, nothing changes.
    """
    tokens, blocks = backbone.tokens_per_frame, []
    for index in range(backbone.layers):
        left_over = tokens - 1 - math.ceil(keep * (tokens - 1)) if index in EVIT_BLOCKS else 0
        r_intra = max(left_over - 1, 0)
        blocks.append(
            BlockSchedule(
                index=index,
                factor=1,
                clips=frames,
                n_cls=1,
                tokens_in=tokens,
                r_cross=0,
                tokens_attention=tokens,
                r_intra=r_intra,
                tokens_mlp=tokens - r_intra,
            )
        )
        tokens -= r_intra
    return Schedule(frames, backbone.tokens_per_frame, tuple(blocks))


def within_frames(schedule: Schedule, backbone: Backbone) -> Complexity:
    """Count `schedule` with tokens attending within their own frame: n^2 / frames per clip in place of n^2.

    That is the least it can be, when a clip's tokens are spread evenly over its frames.
    """
    saved = 0
    for block in schedule.blocks:
        n = block.tokens_attention
        saved += block.clips * (n**2 - n**2 // block.n_cls)
    counted = complexity(schedule, backbone)
    return dataclasses.replace(
        counted,
        attention_products=counted.attention_products - 2 * backbone.width * saved,
        elementwise=counted.elementwise - backbone.heads * saved,
    )
