"""One word has one meaning, and it is the field's: names in code hold no word that has been replaced."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tempme_export", "kernels", "bench", "tests", "examples")

# Word in a name -> the term for it.
REPLACED = {
    "oracle": "reference",
    "oracles": "references",
    "wanted": "requested, expected",
    "contender": "candidate",
    "contenders": "candidates",
    "footage": "clip",
    "handicap": "slowdown",
    "knee": "saturation",
    "knees": "saturations",
    "restless": "noisy",
    "settled": "converged",
    "heed": "combine",
    "beside": "comparison",
    "deciding": "with_assignments",
    "judging": "verification",
    "judge": "verify",
    "judges": "verify",
}
# A whole name -> the term for it.
RENAMED = {
    "give_back": "trim_malloc",
    "see": "update",
    "Seen": "ActivationStats",
    "expose": "extra_outputs",
    "both_paths": "compare_artifacts",
    "Trace": "MergeLog",
}
# A word of one thing only, and the folders that deal with it.
OF_ONE_THING = {
    "plan": (
        "tempme_export/exporters/trt/",
        "tempme_export/runtime/tensorrt",
        "tempme_export/runtime/engine_facts.py",
        "tempme_export/artifacts/registry.py",
    ),
    "trace": ("tempme_export/exporters/",),
}
ONCE = ("Facts", "Request", "Comparison", "Machine", "Gpu")
OF_SENTENCES = {"beside", "judge", "judges", "plan", "settled", "trace"}  # plain words in the name of a test


def names(tree: ast.AST) -> Iterator[str]:
    """Every name that the code gives or uses; the ones of other packages among them."""
    for node in ast.walk(tree):
        for field in ("name", "id", "attr", "arg", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield from name.split(".")


def words(name: str) -> list[str]:
    """The words of a name, in lower case."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def found(source: str, path: str) -> set[str]:
    """The names in `source` that hold a word that means something else here, or nothing."""
    wrong = set[str]()
    in_tests = path.startswith("tests/")
    for name in names(ast.parse(source)):
        sentence = OF_SENTENCES if in_tests and name.startswith("test_") else set[str]()
        held = set(words(name)) - sentence
        elsewhere = {word for word, places in OF_ONE_THING.items() if not in_tests and not path.startswith(places)}
        if name in RENAMED or held & (REPLACED.keys() | elsewhere):
            wrong.add(name)
    return wrong


def files() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_name_holds_a_word_that_was_replaced() -> None:
    every = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files()}
    assert {path: names for path, source in every.items() if (names := found(source, path))} == {}


def test_one_class_for_each_of_these() -> None:
    """Two kinds of facts have two names: a reader who meets one need not ask which."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files() if "tests" not in path.parts]
    classes = Counter(node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    assert {name: classes[name] for name in ONCE if classes[name] > 1} == {}


@pytest.mark.parametrize(
    ("source", "path", "expected"),
    [
        ("def f(oracle): pass", "bench/run.py", {"oracle"}),
        ("from x import best_oracle as y", "tests/test_x.py", {"best_oracle"}),
        ("class TestOracle: pass", "tests/test_x.py", {"TestOracle"}),
        ("x.judging(wanted=1)", "kernels/launch.py", {"judging", "wanted"}),
        ("x = recipe.plan", "tempme_export/encoder/recipe.py", {"plan"}),
        ("class BlockPlan: pass", "bench/adapters.py", {"BlockPlan"}),
        ("plan = runtime.serialize()", "tempme_export/exporters/trt/builder.py", set()),
        ("def test_a_plan_beside_it(): pass", "tests/test_x.py", set()),
        ("def test_the_oracle(): pass", "tests/test_x.py", {"test_the_oracle"}),
        ("x = 'wanted'  # an oracle", "bench/run.py", set()),
        ("planted, explain, traceback, besides, seen = 1, 2, 3, 4, 5", "bench/run.py", set()),
        ("runner.see(expose=1)", "bench/run.py", {"see", "expose"}),
    ],
)
def test_it_finds_what_it_should(source: str, path: str, expected: set[str]) -> None:
    assert found(source, path) == expected
