"""docs/computation.md is the specification: what code cites stands there, and its tables are what code computes."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tempme_export.bench import paper
from tempme_export.encoder.backbone import open_clip_backbone
from tempme_export.encoder.profile import load_profile
from tempme_export.encoder.schedule import build_schedule

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "computation.md").read_text(encoding="utf-8")
FOLDERS = ("tempme_export", "kernels", "bench", "tests", "profiles", "examples")
CITED = re.compile(r"\bspec(?:ification)?,?\s+sections?\s+(\d+(?:(?:,| and|, rule)\s+\d+)*)", re.IGNORECASE)
SECTION = re.compile(r"^## (\d+)\. (?:.|\n(?!## ))+", re.MULTILINE)
RULE = re.compile(r"^(\d+)\. ", re.MULTILINE)


def sections() -> dict[int, set[int]]:
    """Section -> its numbered rules."""
    return {int(one[1]): {int(rule) for rule in RULE.findall(one[0])} for one in SECTION.finditer(PAGE)}


def citations(text: str) -> Iterator[tuple[int, int | None]]:
    """Section and rule, None where a section is cited alone. A line that breaks amid a citation is one."""
    for numbers in CITED.findall(text):
        section, _, rule = numbers.partition(", rule")
        for one in re.findall(r"\d+", section):
            yield int(one), int(rule) if rule else None


def sources() -> list[Path]:
    files = (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")))
    return [path for path in files if path.suffix in (".py", ".toml", ".md")]


def test_the_sections_are_numbered_in_order():
    assert list(sections()) == list(range(1, 12))
    assert sections()[3] == {1, 2, 3, 4}


def test_every_section_that_is_cited_is_there():
    there, cited = sections(), set()
    for path in sources():
        for section, rule in citations(path.read_text(encoding="utf-8")):
            cited.add(section)
            assert section in there, (path, section)
            assert rule is None or rule in there[section], (path, section, rule)
    assert len(cited) >= 8


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("as spec section 4 reads", [(4, None)]),
        ("Spec section 8: per block", [(8, None)]),
        ("(spec sections 2, 3 and 5)", [(2, None), (3, None), (5, None)]),
        ("(spec section 3, rule 1)", [(3, 1)]),
        ("of spec\n    section 12", [(12, None)]),
        ("Section 4.1 of the paper", []),
    ],
)
def test_what_cites(text, found):
    assert list(citations(text)) == found


def table(section: int) -> list[list[str]]:
    """Cells of the section's table, row by row, the heading first and the rule below it left out."""
    text = next(one[0] for one in SECTION.finditer(PAGE) if int(one[1]) == section)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [row for row in rows if set("".join(row)) != {"-"}]


def test_token_counts_are_those_of_the_schedule():
    (_, *names), *rows = table(8)
    assert len(names) == 4 and len(rows) == 6
    for column, name in enumerate(names, start=1):
        profile = load_profile(name.strip("`"))
        backbone = open_clip_backbone(profile.backbone)
        frames, tokens = profile.frames, backbone.tokens_per_frame
        blocks = build_schedule(profile.merge, layers=backbone.layers, frames=frames, tokens_per_frame=tokens).blocks
        for row in rows:
            block = blocks[int(row[0])]
            assert row[column] == f"{block.clips}x{block.tokens_attention} -> {block.tokens_mlp}", (name, row[0])


def test_gflops_are_those_of_the_paper_and_of_the_formula():
    counted = {(claim.label, claim.frames): paper.count(claim) for claim in paper.CLAIMS if claim.reproduces}
    rows = {(label, int(frames)): (printed, ours) for label, frames, printed, ours in table(9)[1:]}
    assert rows.keys() == counted.keys()
    for key, (printed, ours) in rows.items():
        assert (printed, ours) == (f"{counted[key].printed:.1f}", f"{counted[key].complexity.gmacs:.2f}"), key
