"""A tower made ready for 8 bits: its weights migrated and rounded, the ranges of its activations, and what stays in
float, with the reason."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch

from tempme_export.model import TextEncoder, VideoEncoder
from tempme_export.quantization.embedding import RoundedEmbedding
from tempme_export.quantization.migration import migrate
from tempme_export.quantization.pixels import PIXELS, PixelPatches
from tempme_export.quantization.products import Calls, Range, observe, products
from tempme_export.quantization.ranges import DEFAULT_METHOD, choose_ranges
from tempme_export.quantization.rounding import round_product
from tempme_export.quantization.sensitivity import (
    LIMIT,
    Sensitivity,
    centred_loss,
    choose_in_float,
    costliest_first,
    measure,
    put,
)
from tempme_export.recipe import Recipe

_JUDGED = 5  # calibration clips that every product is tried on; odd, for the median
_EMBEDDING = "embedding"
_EMBEDDING_LIMIT = 2e-3  # of centred cosine

_Module = TypeVar("_Module", VideoEncoder, TextEncoder)


@dataclass(frozen=True)
class Tower(Generic[_Module]):
    """module         in float32, computing what the encoder computes but for the corrections of the rounded weights
    ranges         of every product's input
    sensitivities  of every product and of the text tower's embedding, the costliest first
    in_float       what of these stays in float
    cost           what the median centred cosine of the calibration data loses by all other products together
    """

    module: _Module
    ranges: Mapping[str, Range]
    sensitivities: tuple[Sensitivity, ...]
    in_float: tuple[str, ...]
    cost: float

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "in_float": list(self.in_float),
            "cost": self.cost,
            "limit": LIMIT,
            "sensitivities": [asdict(one) for one in self.sensitivities],
            "ranges": {name: [one.lowest, one.highest] for name, one in self.ranges.items()},
        }


def _judged(calls: Calls) -> Calls:
    """Those that everything is tried on."""
    return calls[:: -(-len(calls) // _JUDGED)]


def _prepare(
    tower: _Module, calls: Calls, method: str, known: Mapping[str, Range] = MappingProxyType({})
) -> Tower[_Module]:
    """known  ranges that are not left to what the calibration data show"""
    seen = migrate(tower, observe(tower, calls))
    ranges = {**choose_ranges(tower, seen, calls, method), **known}
    parameters = {name: round_product(product, seen[name]) for name, product in products(tower).items()}
    judged = _judged(calls)
    sensitivities = measure(tower, parameters, ranges, judged)
    in_float, cost = choose_in_float(tower, parameters, ranges, judged, sensitivities)
    put(tower, {name: one for name, one in parameters.items() if name not in in_float})
    return Tower(tower, ranges, sensitivities, in_float, cost)


def prepare_video(recipe: Recipe, clips: Calls, method: str = DEFAULT_METHOD) -> Tower[VideoEncoder]:
    """The video tower of a recipe, whose weights are left alone.

    clips   normalised frames, float32 [1, F, 3, S, S] each, at least two
    method  one of `ranges.METHODS`
    """
    backbone = recipe.backbone
    encoder = copy.deepcopy(VideoEncoder(recipe)).eval()
    conv1 = products(encoder)["conv1"]
    encoder.conv1 = PixelPatches(conv1, backbone.mean, backbone.std)
    return _prepare(encoder, clips, method, {"conv1.linear": PIXELS})


@torch.inference_mode()
def _round_embedding(encoder: TextEncoder, token_ids: Calls) -> Sensitivity:
    """Replace the embedding by one of 8 bits, unless that costs too much."""
    embedding = encoder.embedding
    expected = torch.cat([encoder(call) for call in token_ids])
    encoder.embedding = RoundedEmbedding(encoder.get_parameter(f"{_EMBEDDING}.weight"))
    found = Sensitivity(_EMBEDDING, centred_loss(expected, torch.cat([encoder(call) for call in token_ids])))
    if not found.cost <= _EMBEDDING_LIMIT:  # nor what cannot be told
        encoder.embedding = embedding
    return found


def prepare_text(recipe: Recipe, token_ids: Calls, method: str = DEFAULT_METHOD) -> Tower[TextEncoder]:
    """The text tower of a recipe, with its embedding in 8 bits too.

    token_ids  int64 [T, L] each; texts of one call are run together
    method     as for `prepare_video`
    """
    encoder = copy.deepcopy(TextEncoder(recipe)).eval()
    embedding = _round_embedding(encoder, _judged(token_ids))
    left = () if isinstance(encoder.embedding, RoundedEmbedding) else (_EMBEDDING,)
    tower = _prepare(encoder, token_ids, method)
    return replace(
        tower,
        sensitivities=costliest_first([embedding, *tower.sensitivities]),
        in_float=(*tower.in_float, *left),
    )
