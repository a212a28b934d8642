"""A tower made ready for 8 bits: its weights migrated and rounded, the ranges of its activations, and what stays in
float, with the reason."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from torch import Tensor

from tempme_export.encoder.model import TextEncoder, VideoEncoder
from tempme_export.encoder.recipe import Recipe
from tempme_export.errors import CheckpointError
from tempme_export.progress import SILENT, Progress
from tempme_export.quantization.embedding import RoundedEmbedding
from tempme_export.quantization.migration import migrate
from tempme_export.quantization.pixels import PIXELS, PixelPatches
from tempme_export.quantization.products import ActivationStats, Calls, Range, observe, products
from tempme_export.quantization.ranges import DEFAULT_METHOD, choose_ranges
from tempme_export.quantization.rounding import Rounded, put, round_product
from tempme_export.quantization.sensitivity import (
    LIMIT,
    Sensitivity,
    centred_loss,
    choose_in_float,
    costliest_first,
    embed,
    measure,
)

_TRIAL_CALLS = 5  # at most so many calls of the calibration data are what every product is tried on
_EMBEDDING = "embedding"

_Module = TypeVar("_Module", VideoEncoder, TextEncoder)


@dataclass(frozen=True)
class Tower(Generic[_Module]):
    """module         in float32; products in 8 bits have weights on their steps already, and biases that make up for it
    ranges         of every product's input
    sensitivities  of every product and of the text tower's embedding, the costliest first
    in_float       what of these stays in float
    cost           what the median centred cosine of the calibration data loses by all the rest together
    """

    module: _Module
    ranges: Mapping[str, Range]
    sensitivities: tuple[Sensitivity, ...]
    in_float: tuple[str, ...]
    cost: float

    def to_dict(self) -> dict[str, Any]:
        """Values for the manifest."""
        return {
            "in_float": list(self.in_float),
            "cost": self.cost,
            "limit": LIMIT,
            "sensitivities": [asdict(one) for one in self.sensitivities],
            "ranges": {name: [one.lowest, one.highest] for name, one in self.ranges.items()},
        }


@dataclass(frozen=True)
class Steps:
    """Steps that make a tower ready; with another step in its place, each shows what it is worth.

    migrate          balances the weights with their inputs, before anything is rounded
    round            rounds the weights of one product
    choose           says which products stay in float, and what the rest cost together
    embedding_limit  of centred cosine, what the text embedding may cost alone
    """

    migrate: Callable[[Any, dict[str, ActivationStats]], dict[str, ActivationStats]] = migrate
    round: Callable[[Any, ActivationStats], Rounded] = round_product
    choose: Callable[..., tuple[tuple[str, ...], float]] = choose_in_float
    embedding_limit: float = 2e-3


STEPS = Steps()


def _trial_calls(calls: Calls) -> Calls:
    """Calls that everything is tried on, spread evenly."""
    return calls[:: -(-len(calls) // _TRIAL_CALLS)]


def _prepare(
    tower: _Module,
    calls: Calls,
    method: str,
    expected: Tensor,
    source: str,
    steps: Steps,
    progress: Progress,
    known: Mapping[str, Range] = MappingProxyType({}),
) -> Tower[_Module]:
    """expected  what the trial calls gave before anything was rounded
    source    whose weights these are, for errors
    known     ranges that are not left to what the calibration data show
    """
    seen = steps.migrate(tower, _finite(observe(tower, calls), source))
    ranges = {**choose_ranges(tower, seen, calls, method), **known}
    # Popped, because the moments of all products of a large tower take gigabytes.
    found, parameters = products(tower), dict[str, Rounded]()
    with progress.step("rounding weights", len(found), "products") as step:
        for done, (name, one) in enumerate(found.items()):
            step.advance(done, name)
            parameters[name] = steps.round(one, seen.pop(name))
    trials = _trial_calls(calls)
    sensitivities = measure(tower, parameters, ranges, trials, progress)
    in_float, cost = steps.choose(tower, parameters, ranges, trials, expected, sensitivities)
    put(tower, {name: one for name, one in parameters.items() if name not in in_float})
    return Tower(tower, ranges, sensitivities, in_float, cost)


def _finite(seen: dict[str, ActivationStats], source: str) -> dict[str, ActivationStats]:
    """Return the statistics if they are finite: 8 bits have no value for anything else."""
    for name, one in seen.items():
        if not one.is_finite:
            raise CheckpointError(
                f"{source}: found an input of {name} that is not finite, or not when squared, expected numbers: what "
                "overflows in float32 cannot be quantised. Use a checkpoint whose training did not diverge."
            )
    return seen


def prepare_video(
    recipe: Recipe, clips: Calls, method: str = DEFAULT_METHOD, steps: Steps = STEPS, progress: Progress = SILENT
) -> Tower[VideoEncoder]:
    """The video tower of a recipe, whose weights are left alone.

    clips   normalised frames, float32 [1, F, 3, S, S] each, at least two
    method  one of `ranges.METHODS`
    Raises CheckpointError where activations overflow, UsageError for another method.
    """
    backbone = recipe.backbone
    encoder = copy.deepcopy(VideoEncoder(recipe)).eval()
    expected = embed(encoder, _trial_calls(clips))
    conv1 = products(encoder)["conv1"]
    encoder.conv1 = PixelPatches(conv1, backbone.mean, backbone.std)
    source = f"{recipe.checkpoint.source}, video tower"
    return _prepare(encoder, clips, method, expected, source, steps, progress, {"conv1.linear": PIXELS})


def round_embedding(encoder: TextEncoder, calls: Calls, expected: Tensor, limit: float) -> Sensitivity:
    """Replace the embedding by one of 8 bits, unless that costs more than the limit, or nobody can tell."""
    embedding = encoder.embedding
    encoder.embedding = RoundedEmbedding(encoder.get_parameter(f"{_EMBEDDING}.weight").detach())
    found = Sensitivity(_EMBEDDING, centred_loss(expected, embed(encoder, calls)))
    if not found.cost <= limit:  # also where it is NaN
        encoder.embedding = embedding
    return found


def prepare_text(
    recipe: Recipe, token_ids: Calls, method: str = DEFAULT_METHOD, steps: Steps = STEPS, progress: Progress = SILENT
) -> Tower[TextEncoder]:
    """The text tower of a recipe, with its embedding in 8 bits too.

    token_ids  int64 [T, L] each; texts of one call are run together
    method     as for `prepare_video`, and so are the errors
    """
    encoder = copy.deepcopy(TextEncoder(recipe)).eval()
    expected = embed(encoder, _trial_calls(token_ids))
    embedding = round_embedding(encoder, _trial_calls(token_ids), expected, steps.embedding_limit)
    left = () if isinstance(encoder.embedding, RoundedEmbedding) else (_EMBEDDING,)
    tower = _prepare(encoder, token_ids, method, expected, f"{recipe.checkpoint.source}, text tower", steps, progress)
    return replace(
        tower,
        sensitivities=costliest_first([embedding, *tower.sensitivities]),
        in_float=(*tower.in_float, *left),
    )
