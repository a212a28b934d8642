"""The same encoder counted three ways: by formula, on the running module, in the exported graph.

Products are compared, part by part and to the last multiply-accumulate: the patch convolution, attention's
projections and its products, the MLP, the output projection. Both counts but the formula read shapes, so there is no
rounding to allow for. Element-wise work (normalisations, activations, softmax) is counted by formula only, and added
to a count's products for its GMACs; products that choose and merge tokens are shown beside, as the paper charges none.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tempme_export.bench import paper
from tempme_export.bench.adapters import (
    ADAPTER_WIDTH,
    PROMPTS,
    prompted_schedule,
    with_adapters,
    with_key_prompts,
)
from tempme_export.bench.counting.products import PARTS, Parts, Products, parts_of
from tempme_export.bench.paper import Claim, ClaimSchedule, Counter
from tempme_export.encoder.backbone import Backbone, open_clip_backbone
from tempme_export.encoder.complexity import Complexity, complexity
from tempme_export.encoder.schedule import Schedule
from tempme_export.errors import ParityError

if TYPE_CHECKING:
    from tempme_export.encoder.recipe import Recipe

NO_ENCODER = "by formula only: the paper does not say enough to build an encoder that computes this"
NO_EXPORT = "has no exported graph: it runs on the original path only"
NOT_ASKED = "not asked for"


@dataclass(frozen=True)
class Counted:
    """One method's counts per video; `eager` and `graph` are None where the method was not counted so.

    no_eager, no_graph  why it was not
    """

    method: str
    formula: Complexity
    eager: Parts | None = None
    graph: Parts | None = None
    no_eager: str = ""
    no_graph: str = ""

    def gmacs(self, counted: Parts | None) -> float | None:
        """The paper's GFLOPs from products counted this way, with the formula's element-wise work."""
        return None if counted is None else (counted.products + self.formula.elementwise) / 1e9

    @property
    def merging_gmacs(self) -> float | None:
        """Products that choose and merge tokens on the original path, charged in no count."""
        return None if self.eager is None else self.eager.merging / 1e9

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object: GMACs of each way to count, products by part in multiply-accumulates, reasons."""
        return {
            "method": self.method,
            "formula_gmacs": self.formula.gmacs,
            "eager_gmacs": self.gmacs(self.eager),
            "graph_gmacs": self.gmacs(self.graph),
            "merging_gmacs": self.merging_gmacs,
            "formula": {part: getattr(self.formula, part) for part in PARTS},
            "eager": None if self.eager is None else dataclasses.asdict(self.eager),
            "graph": None if self.graph is None else dataclasses.asdict(self.graph),
            "no_eager": self.no_eager,
            "no_graph": self.no_graph,
        }

    def disagreements(self) -> list[str]:
        """Every part that was counted otherwise than by formula, with both figures."""
        formula = parts_of(self.formula)
        ways = (("eager", self.eager), ("in the graph", self.graph))
        return [
            f"{self.method}, {part}: {getattr(counted, part)} {way} against {getattr(formula, part)} by formula"
            for way, counted in ways
            if counted is not None
            for part in PARTS
            if getattr(counted, part) != getattr(formula, part)
        ]


def check_counts(counted: Iterable[Counted]) -> None:
    """Raise ParityError, naming method, part and both figures, where two ways to count disagree at all."""
    wrong = [text for one in counted for text in one.disagreements()]
    if wrong:
        raise ParityError(
            f"{len(wrong)} count(s) of multiply-accumulates per video disagree: {'; '.join(wrong)}. "
            "What runs is not what the formula describes."
        )


Way = Callable[["Recipe"], Products]


@dataclass(frozen=True)
class _Encoder:
    """Recipe of the encoder of a kind of claim: which additions its recipe has, how it is counted, and whether
    the fast encoder, and so an exported graph, computes the same."""

    eager: Way
    adapter: int | None = None
    prompts: int | None = None
    exports: bool = False


def _original(recipe: "Recipe") -> Products:
    from tempme_export.bench.counting.flops import count_eager
    from tempme_export.bench.counting.shapes import shape_frames
    from tempme_export.encoder.reference import ReferenceVideo

    return count_eager(ReferenceVideo(recipe, device="meta"), shape_frames(recipe))


def _evit(recipe: "Recipe") -> Products:
    """Reading the class token's attention and fusing count as merging: the paper charges neither."""
    from tempme_export.bench.counting.flops import MERGING, count_eager
    from tempme_export.bench.counting.shapes import shape_frames
    from tempme_export.bench.methods.encoders import EvitVideo, class_attention, keep_attentive

    merging = (*MERGING, class_attention, keep_attentive)
    return count_eager(EvitVideo(recipe, device="meta"), shape_frames(recipe), merging=merging)


def _prompted(recipe: "Recipe") -> Products:
    from tempme_export.bench.counting.flops import count_eager
    from tempme_export.bench.counting.prompted import PromptedVideo
    from tempme_export.bench.counting.shapes import shape_frames

    return count_eager(PromptedVideo(recipe, PROMPTS, "meta"), shape_frames(recipe))


_ENCODERS: Mapping[tuple[ClaimSchedule, Counter], _Encoder] = MappingProxyType(
    {
        (paper.merge_schedule, complexity): _Encoder(_original, exports=True),
        (paper.evit_claim_schedule, complexity): _Encoder(_evit),
        (paper.merge_schedule, with_adapters): _Encoder(_original, adapter=ADAPTER_WIDTH, exports=True),
        (prompted_schedule, complexity): _Encoder(_prompted),
        (paper.merge_schedule, with_key_prompts): _Encoder(_original, prompts=PROMPTS),
    }
)


def _counted(products: Products, schedule: Schedule, backbone: Backbone, where: str) -> Parts:
    """The parts of a count whose tokens are those of the schedule. Raises ParityError where they are not."""
    from tempme_export.bench.counting.tokens import check_tokens

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
    encoder = _ENCODERS.get((claim.schedule, claim.count))
    if encoder is None:
        return Counted(method, formula, no_eager=NO_ENCODER, no_graph=NO_ENCODER)

    from tempme_export.bench.counting.shapes import claim_profile, shape_recipe

    profile = claim_profile(claim)
    products = encoder.eager(shape_recipe(profile, backbone, adapter=encoder.adapter, prompts=encoder.prompts))
    eager = _counted(products, schedule, backbone, f"{method}, run eagerly,")
    if not encoder.exports:
        return Counted(method, formula, eager, no_graph=NO_EXPORT)
    if not graph:
        return Counted(method, formula, eager, no_graph=NOT_ASKED)

    from tempme_export.bench.counting.exported import graph_of
    from tempme_export.bench.counting.graph import count_graph

    proto = graph_of(shape_recipe(profile, backbone, device="cpu", adapter=encoder.adapter))
    return Counted(method, formula, eager, _counted(count_graph(proto), schedule, backbone, f"the graph of {method}"))
