"""README, CONTRIBUTING and docs name commands that parse, options that exist, and files and headings that are there."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import typer.main

import tempme_export
from tempme_export.bench import cli as bench
from tempme_export.cli import app, evaluate, export, train
from tempme_export.cli.doctor import doctor

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
MOST_LINES = 150  # of the README
LINES = {one.name: one for one in (export.line, bench.line, train.line, evaluate.line, doctor())}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
FOLDERS = ("bench/", "docs/", "examples/", "kernels/", "profiles/", "tempme_export/", "tests/")


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def prose(page: Path) -> str:
    return FENCE.sub("", text(page)).replace("\\|", "|")


def shell_lines(page: Path) -> Iterator[str]:
    """Commands of fenced blocks, whole where a line goes on with a backslash, and commands between backticks."""
    for language, block in FENCE.findall(text(page)):
        joined = block.replace("\\\n", " ")
        if language == "sh":
            yield from (line for line in joined.splitlines() if line.strip())
        elif language == "console":
            yield from (line[2:] for line in joined.splitlines() if line.startswith("$ "))
    yield from (code for code in INLINE.findall(prose(page)) if re.match(r"(tempme-\w+|make|python|torchrun) ", code))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command, those that a semicolon joins apart, leading settings of the environment left out."""
    for line in shell_lines(page):
        words = shlex.split(line.replace(";", " ; "), comments=True)
        part: list[str] = []
        for word in [*words, ";"]:
            if word != ";":
                part += [] if not part and re.fullmatch(r"[A-Z_]+=\S*", word) else [word]
            elif part:
                yield part
                part = []


def named(of: str) -> list[tuple[Path, list[str]]]:
    return [(page, words) for page in PAGES for words in commands(page) if words[0].startswith(of)]


def id_of(value: object) -> str:
    return value.stem if isinstance(value, Path) else " ".join(value) if isinstance(value, list) else str(value)


@pytest.mark.parametrize(("page", "words"), named("tempme-"), ids=id_of)
def test_a_command_parses(page, words):
    name, *arguments = (word.strip("[]") for word in words)
    try:
        typer.main.get_command(LINES[name].app).make_context(name, arguments)
    except typer.Exit as shown:  # --help, --version
        assert shown.exit_code == 0


def test_a_command_that_does_not_exist_is_found():
    with pytest.raises(app.PARSER_ERROR, match="No such option"):
        typer.main.get_command(LINES["tempme-export"].app).make_context("tempme-export", ["ckpt.pt", "--tensorrt"])


def calls_of_commands(script: Path) -> Iterator[tuple[str, set[str]]]:
    """Each call that names a command: the command and its options."""
    for call in ast.walk(ast.parse(text(script))):
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
            words = [one.value for one in call.args if isinstance(one, ast.Constant)]
            if words[0] in LINES:
                yield words[0], {word for word in words if str(word).startswith("--")}


def test_examples_name_options_that_exist():
    named = list(calls_of_commands(ROOT / "examples" / "demo.py"))
    assert {name for name, _ in named} >= {"tempme-export", "tempme-bench"}
    for name, options in named:
        known = {opt for one in typer.main.get_command(LINES[name].app).params for opt in one.opts}
        assert options <= known, (name, options - known)


@pytest.mark.parametrize(("page", "words"), named("make"), ids=id_of)
def test_a_target_is_in_the_makefile(page, words):
    targets = re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.MULTILINE)
    for word in words[1:]:
        assert "=" in word or word in targets, word


@pytest.mark.parametrize(("page", "words"), [*named("python"), *named("torchrun")], ids=id_of)
def test_a_script_is_there(page, words):
    if "-m" in words:
        module = words[words.index("-m") + 1].removeprefix("tempme_export.bench").removeprefix("tempme_export")
        folder = ROOT / ("bench" if ".bench" in words[words.index("-m") + 1] else "tempme_export")
        assert folder.joinpath(*module.strip(".").split(".")).with_suffix(".py").is_file()
    elif "-c" in words:
        ast.parse(words[words.index("-c") + 1])
    else:
        assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_python_is_python_and_uses_public_names(page):
    for language, block in FENCE.findall(text(page)):
        if language == "python":
            used = [one for one in ast.walk(ast.parse(block)) if isinstance(one, ast.Attribute)]
            for one in used:
                if isinstance(one.value, ast.Name) and one.value.id == "tempme_export":
                    assert hasattr(tempme_export, one.attr), one.attr


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith("https://"):
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            assert file.is_file(), target
            assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_files_that_are_named_exist(page):
    for code in INLINE.findall(prose(page)):
        if code.startswith(FOLDERS) and " " not in code:
            assert (ROOT / code).exists(), code


def test_the_readme_is_short_and_names_every_page():
    readme = text(ROOT / "README.md")
    assert len(readme.splitlines()) < MOST_LINES
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme, page.name


def test_the_page_of_commands_is_whole():
    page = text(ROOT / "docs" / "cli.md")
    listed = [[word.strip("[]") for word in words] for words in commands(ROOT / "docs" / "cli.md")]
    for name, line in LINES.items():
        assert any(words[0] == name for words in listed) or f"`{name}`" in page, name
        for subcommand in line.complete(""):
            assert any(words[:2] == [name, subcommand] for words in listed), f"{name} {subcommand}"
    for code, meaning in app.CODES.items():
        assert re.search(rf"^\| (\d+, )*{code}(, \d+)* \| .", page, re.MULTILINE), (code, meaning)
