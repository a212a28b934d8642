"""The paper's rows for trained additions that cannot be folded into CLIP's weights, and so cost something at inference.

Sizes follow from the parameters that the paper prints (Tables 2 and 13), which count both towers of ViT-B/32:

    Adapter 0.26 M = 12 (2 * 8 * 768 + 8 + 768) + 12 (2 * 8 * 512 + 8 + 512): one bottleneck of inner width 8 in each
                     block; 8 is the dimension of Section 4.1, which Appendix C.2 says all kinds share
    Prompt  0.08 M = 12 * 5 * (768 + 512): five prompts in each block

VoP and DGL are described too little for a count: the paper says that they "generate prompt tokens and capture global
video information", and that the generation is left out of the figures. Their rows show what is known and say so.
"""

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from tempme_export.bench.paper import Claim, Counter, merge_schedule
from tempme_export.encoder.backbone import Backbone
from tempme_export.encoder.complexity import Complexity, complexity
from tempme_export.encoder.schedule import BlockSchedule, MergePolicy, Schedule
from tempme_export.errors import ProfileError

if TYPE_CHECKING:
    from tempme_export.encoder.checkpoint import CheckpointFacts

ADAPTER_WIDTH = 8
"""Inner width of an adapter: the dimension that Section 4.1 gives for all experiments."""

PROMPTS = 5
"""Prompts in each block: 76,800 parameters in both towers of ViT-B/32, printed as 0.08 M."""


def with_adapters(schedule: Schedule, backbone: Backbone) -> Complexity:
    """Count `schedule` with an adapter behind the MLP of each block: two products per token and a ReLU between them.

    Sums are not charged, as for the residuals of the formula (spec section 9).
    """
    tokens = sum(block.clips * block.tokens_mlp for block in schedule.blocks)
    counted = complexity(schedule, backbone)
    return dataclasses.replace(
        counted,
        mlp=counted.mlp + 2 * ADAPTER_WIDTH * backbone.width * tokens,
        elementwise=counted.elementwise + ADAPTER_WIDTH * tokens,
    )


def prompted_schedule(claim: Claim, backbone: Backbone) -> Schedule:
    """Token counts with PROMPTS more tokens per clip in every block: they pass its attention and its MLP as any other
    token does, and those of the next block take their place."""

    def prompted(block: BlockSchedule) -> BlockSchedule:
        return dataclasses.replace(
            block,
            tokens_in=block.tokens_in + PROMPTS,
            tokens_attention=block.tokens_attention + PROMPTS,
            tokens_mlp=block.tokens_mlp + PROMPTS,
        )

    schedule = merge_schedule(claim, backbone)
    return dataclasses.replace(schedule, blocks=tuple(prompted(block) for block in schedule.blocks))


def with_key_prompts(schedule: Schedule, backbone: Backbone) -> Complexity:
    """Count `schedule` with PROMPTS more keys and values in every block and no more tokens, as `tempme-train --tune
    prompt` adds them. They are projected once per call, which is charged to the one video counted here."""
    width = backbone.width
    counted = complexity(schedule, backbone)
    pairs = sum(block.clips * block.tokens_attention * PROMPTS for block in schedule.blocks)
    prompts = len(schedule.blocks) * PROMPTS
    return dataclasses.replace(
        counted,
        attention_projections=counted.attention_projections + prompts * 2 * width**2,
        attention_products=counted.attention_products + 2 * width * pairs,
        elementwise=counted.elementwise + backbone.heads * pairs + 5 * width * prompts,
    )


def counter_for(facts: "CheckpointFacts", source: str) -> Counter:
    """The formula of a checkpoint's own additions.

    source  names the checkpoint. Raises ProfileError for adapters or prompts of other sizes than the formulas have.
    """
    if (facts.adapter, facts.prompts) == (None, None):
        return complexity
    if (facts.adapter, facts.prompts) == (ADAPTER_WIDTH, None):
        return with_adapters
    if (facts.adapter, facts.prompts) == (None, PROMPTS):
        return with_key_prompts
    raise ProfileError(
        f"{source} has adapters of {facts.adapter} and prompts of {facts.prompts}; operations are counted by formula "
        f"without, with adapters of {ADAPTER_WIDTH} alone, or with {PROMPTS} prompts alone."
    )


_B32, _B16 = "ViT-B-32-quickgelu", "ViT-B-16-quickgelu"
_NONE = MergePolicy(0, (), (), 0, 0)
_ADAPTER = f"bottleneck of inner width {ADAPTER_WIDTH} behind each MLP"
_PROMPT = f"{PROMPTS} more tokens per frame through every block"
_TABLE_4 = "; the 2369 tokens of Table 4 are 12 x 197 + 5, the prompts of one frame"
_UNKNOWN = (
    "the paper gives neither the number of its prompts, nor their blocks, nor which tokens attend to which, and leaves "
    "the modules that generate them out; {{ours:.1f}} is the tower without them, to which they add{tokens}"
)


_prompted = partial(Claim, schedule=prompted_schedule, encoder="prompts")
_adapted = partial(Claim, count=with_adapters, settings=_ADAPTER, encoder="adapters")


def _unknown(label: str, source: str, backbone: str, printed: float, tokens: str = "") -> Claim:
    return Claim(
        label,
        source,
        backbone,
        12,
        _NONE,
        printed,
        settings="the tower alone",
        reproduces=False,
        reason=_UNKNOWN.format(tokens=tokens),
    )


ADAPTER_CLAIMS: tuple[Claim, ...] = (
    _prompted("Prompt B/32", "Table 2", _B32, 12, _NONE, 58.2, settings=_PROMPT),
    _prompted("Prompt B/16", "Table 4", _B16, 12, _NONE, 216.8, settings=_PROMPT + _TABLE_4),
    Claim(
        "Prompt B/32, keys and values only",
        "tempme-train --tune prompt",
        _B32,
        12,
        _NONE,
        None,
        count=with_key_prompts,
        settings=f"{PROMPTS} more keys and values in every block",
        encoder="key prompts",
    ),
    _adapted("Adapter B/32", "Table 2", _B32, 12, _NONE, 53.1),
    _adapted("Adapter B/16", "Table 4", _B16, 12, _NONE, 211.7, (12, 197)),
    _unknown("VoP B/32", "Table 2", _B32, 58.0),
    _unknown("VoP B/16", "Table 4", _B16, 246.2, "; its 2368 tokens are 12 x 197 + 4"),
    _unknown("DGL B/32", "Table 2", _B32, 67.4),
    _unknown("DGL B/16", "Table 4", _B16, 251.2, "; its 2416 tokens are 12 x 197 + 52"),
)
"""In the order of the paper's Table 2; the LoRA rows are folded and stand in `paper.CLAIMS` as no merging."""
