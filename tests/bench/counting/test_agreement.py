"""All rows of the paper by formula and by counting; the tiny model also in its exported graph."""

import dataclasses
import subprocess
import sys

import pytest

from tempme_export.bench import paper
from tempme_export.bench.adapters import ADAPTER_CLAIMS
from tempme_export.bench.counting.agreement import (
    NO_ENCODER,
    NO_EXPORT,
    NOT_ASKED,
    Counted,
    check_counts,
)
from tempme_export.bench.counting.claims import count_claim
from tempme_export.bench.counting.products import parts_of
from tempme_export.bench.paper import Claim
from tempme_export.encoder.complexity import Complexity, complexity
from tempme_export.errors import ParityError

FORMULA = Complexity(1, 20, 300, 4000, 50000, 600000)
BY_FORMULA_ONLY = {"token reduction only"}
ORIGINAL_ONLY = {"EViT B/32", "Prompt B/32", "Prompt B/16", "Prompt B/32, keys and values only"}
# Each kind of encoder once, and the rows whose numbers are largest; TempMe's schedules are counted one by one below.
SOME = [
    *(
        claim
        for claim in paper.CLAIMS
        if claim.label in ("EViT B/32", "token reduction only", "joined, nothing merged")
    ),
    *(claim for claim in ADAPTER_CLAIMS if claim.reproduces),
]
SCHEDULES = [claim for claim in paper.CLAIMS if claim.reproduces and claim.merge.clip_layers and claim not in SOME]


@pytest.mark.parametrize("claim", SOME, ids=lambda claim: claim.label)
def test_every_kind_of_row_counts_as_its_formula(claim):
    counted = count_claim(claim)
    assert counted.formula == paper.count(claim).complexity
    assert (counted.eager is None) == (claim.label in BY_FORMULA_ONLY) == (counted.no_eager == NO_ENCODER)
    expected = NO_ENCODER if counted.eager is None else NO_EXPORT if claim.label in ORIGINAL_ONLY else NOT_ASKED
    assert (counted.graph, counted.no_graph) == (None, expected)
    assert counted.disagreements() == []
    if counted.eager is not None:
        assert counted.gmacs(counted.eager) == counted.formula.gmacs


def test_every_schedule_of_the_paper_counts_as_its_formula_and_its_print():
    rows = [(claim, count_claim(claim)) for claim in SCHEDULES]
    assert len(rows) == 9, "TempMe on both backbones, and seven clip schedules of Table 10"
    check_counts(counted for _, counted in rows)
    for claim, counted in rows:
        assert abs(counted.gmacs(counted.eager) - claim.printed) <= paper.TOLERANCE
        assert counted.merging_gmacs > 0


def tiny_claim(recipe, **changes):
    return Claim("tiny", "no table", "tiny", recipe.profile.frames, recipe.profile.merge, None, **changes)


def test_a_claim_is_counted_three_ways(tiny_recipe):
    recipe = tiny_recipe("joined")
    counted = count_claim(tiny_claim(recipe), graph=True, backbone=recipe.backbone)
    assert counted.graph == counted.eager == parts_of(counted.formula)
    check_counts([counted])


def test_a_plan_that_no_encoder_runs_is_caught(tiny_recipe):
    recipe = tiny_recipe("none")

    def fewer(claim, backbone):
        schedule = paper.merge_schedule(claim, backbone)
        return dataclasses.replace(schedule, blocks=schedule.blocks[:-1])

    with pytest.raises(
        ParityError, match=r"tiny \(no table, 4 frames\), run eagerly, ran 3 blocks, its schedule has 2"
    ):
        count_claim(tiny_claim(recipe, schedule=fewer), backbone=recipe.backbone)


def test_a_formula_that_is_wrong_in_one_part_is_caught(tiny_recipe):
    recipe = tiny_recipe("none")

    def wrong(schedule, backbone):
        counted = complexity(schedule, backbone)
        return dataclasses.replace(counted, mlp=counted.mlp + 1)

    counted = count_claim(tiny_claim(recipe, count=wrong), backbone=recipe.backbone)
    mlp = counted.formula.mlp
    with pytest.raises(ParityError, match=rf"1 count\(s\).*tiny .*, mlp: {mlp - 1} eager against {mlp} by formula"):
        check_counts([counted])


def test_disagreements_name_method_part_and_both_figures():
    off = dataclasses.replace(parts_of(FORMULA), attention_projections=21, output_projection=49999)
    rows = [Counted("a", FORMULA, parts_of(FORMULA), parts_of(FORMULA)), Counted("b", FORMULA, None, off, "why")]
    with pytest.raises(ParityError) as caught:
        check_counts(rows)
    assert "2 count(s)" in str(caught.value)
    assert "b, attention_projections: 21 in the graph against 20 by formula" in str(caught.value)
    assert "b, output_projection: 49999 in the graph against 50000 by formula" in str(caught.value)
    assert caught.value.exit_code == 5
    check_counts(rows[:1])


def test_merging_is_beside_and_charged_nowhere():
    parts = dataclasses.replace(parts_of(FORMULA), merging=10**9)
    counted = Counted("a", FORMULA, parts)
    assert counted.disagreements() == []
    assert counted.gmacs(parts) == FORMULA.gmacs
    assert counted.merging_gmacs == 1.0


def test_as_a_json_object():
    found = Counted("a", FORMULA, parts_of(FORMULA), None, "", "why").to_dict()
    assert found["formula_gmacs"] == found["eager_gmacs"] == FORMULA.gmacs
    assert (found["graph_gmacs"], found["graph"], found["no_graph"]) == (None, None, "why")
    assert sum(found["formula"].values()) == FORMULA.products
    assert found["eager"] == {**found["formula"], "merging": 0}
    assert Counted("a", FORMULA).merging_gmacs is None


def test_formulas_load_no_torch():
    code = (
        "import sys; from tempme_export.bench.adapters import ADAPTER_CLAIMS; "
        "from tempme_export.bench.counting import agreement; from tempme_export.bench import paper; "
        "paper.check(map(paper.count, ADAPTER_CLAIMS)); "
        "sys.exit(bool({'torch', 'numpy', 'polars', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
