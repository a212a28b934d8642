"""Encoders that compute what a claim counts, counted at their real size without any number in them.

The paper's prompts as tokens have no checkpoint in this package; their encoder is here, to be counted alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from tempme_export.bench.adapters import ADAPTER_WIDTH, PROMPTS
from tempme_export.bench.counting.agreement import NO_ENCODER, NO_EXPORT, NOT_ASKED, Counted
from tempme_export.bench.counting.flops import count_eager
from tempme_export.bench.counting.graph import count_graph
from tempme_export.bench.counting.products import Parts, Products, check_tokens
from tempme_export.bench.counting.shapes import claim_profile, graph_of, shape_frames, shape_recipe
from tempme_export.bench.methods.encoders import EvitVideo
from tempme_export.bench.paper import Claim
from tempme_export.encoder.backbone import Backbone, open_clip_backbone
from tempme_export.encoder.recipe import Recipe
from tempme_export.encoder.reference import MergeLog, ReferenceVideo
from tempme_export.encoder.schedule import BlockSchedule, Schedule
from tempme_export.errors import ProfileError


class PromptedVideo(ReferenceVideo):
    """The reference with `prompts` zeros behind each clip's tokens in every block, dropped after the block."""

    def __init__(self, recipe: Recipe, prompts: int, device: torch.device | str = "cpu") -> None:
        """Raises ProfileError for a recipe that merges: prompts would be merged as well."""
        if recipe.schedule.merges:
            raise ProfileError(
                f"profile {recipe.profile.name} merges tokens, and nothing says how prompts among them would merge. "
                "Count prompts where nothing merges."
            )
        super().__init__(recipe, device=device)
        self.prompts = prompts

    def _block(
        self, x: Tensor, size: Tensor, block: BlockSchedule, merged_before: bool, log: MergeLog | None
    ) -> tuple[Tensor, Tensor]:
        tokens = x.shape[1]
        x = torch.cat([x, x.new_zeros(len(x), self.prompts, x.shape[2])], dim=1)
        size = torch.cat([size, size.new_ones(len(size), self.prompts)], dim=1)
        x, size = super()._block(x, size, block, merged_before, log)
        return x[:, :tokens], size[:, :tokens]


@dataclass(frozen=True)
class _Encoder:
    """An encoder of claims: its module, the additions of its recipe, and whether the fast encoder, and so an exported
    graph, computes the same."""

    module: Callable[..., ReferenceVideo] = ReferenceVideo
    adapter: int | None = None
    prompts: int | None = None
    exports: bool = False


_ENCODERS: Mapping[str, _Encoder] = MappingProxyType(
    {
        "original": _Encoder(exports=True),
        "evit": _Encoder(EvitVideo),
        "adapters": _Encoder(adapter=ADAPTER_WIDTH, exports=True),
        "prompts": _Encoder(partial(PromptedVideo, prompts=PROMPTS)),
        "key prompts": _Encoder(prompts=PROMPTS),
    }
)


def _counted(products: Products, schedule: Schedule, backbone: Backbone, where: str) -> Parts:
    """The parts of a count whose tokens are those of the schedule. Raises ParityError where they are not."""
    check_tokens(products.tokens(backbone.width), schedule, where)
    return products.parts(backbone.width)


def count_claim(claim: Claim, *, graph: bool = False, backbone: Backbone | None = None) -> Counted:
    """Count a claim by formula, on the running encoder at its real size (on `meta`, where nothing is computed), and,
    with `graph`, in the ONNX graph that is exported for it (about half a minute each).

    backbone  None for the claim's own
    Raises ParityError where the tokens of a running encoder or graph are not the schedule's; whether the counts agree
    is for `check_counts`.
    """
    backbone = open_clip_backbone(claim.backbone) if backbone is None else backbone
    schedule = claim.schedule(claim, backbone)
    formula, method = claim.count(schedule, backbone), f"{claim.label} ({claim.source}, {claim.frames} frames)"
    if claim.encoder is None:
        return Counted(method, formula, no_eager=NO_ENCODER, no_graph=NO_ENCODER)
    encoder, profile = _ENCODERS[claim.encoder], claim_profile(claim)
    recipe = shape_recipe(profile, backbone, adapter=encoder.adapter, prompts=encoder.prompts)
    products = count_eager(encoder.module(recipe, device="meta"), shape_frames(recipe))
    eager = _counted(products, schedule, backbone, f"{method}, run eagerly,")
    if not (graph and encoder.exports):
        return Counted(method, formula, eager, no_graph=NOT_ASKED if encoder.exports else NO_EXPORT)
    proto = graph_of(shape_recipe(profile, backbone, device="cpu", adapter=encoder.adapter))
    return Counted(method, formula, eager, _counted(count_graph(proto), schedule, backbone, f"the graph of {method}"))
