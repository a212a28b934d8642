"""The same encoder counted three ways: by formula, on the running module, in the exported graph.

Products are compared, part by part and to the last multiply-accumulate: the patch convolution, attention's
projections and its products, the MLP, the output projection. Both counts but the formula read shapes, so there is no
rounding to allow for. Element-wise work (normalisations, activations, softmax) is counted by formula only, and added
to a count's products for its GMACs; products that choose and merge tokens are shown beside, as the paper charges none.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tempme_export.bench.counting.products import PARTS, Parts, parts_of
from tempme_export.encoder.complexity import Complexity
from tempme_export.errors import ParityError

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
