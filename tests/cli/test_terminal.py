"""Lines for people fit 100 columns; what is to be copied stays whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempme_export.cli.terminal import WIDTH, folded, show_command, show_line, show_warning

WORDS = "Of all the videos of the test split these were read, and each of them was seen by every tower of the bundle"


def test_a_short_text_is_one_line(capsys):
    show_line("done", "ckpt.tempme in 8 s")
    assert capsys.readouterr().err == "done       ckpt.tempme in 8 s\n"


def test_a_long_text_is_folded_under_its_label(capsys):
    show_line("gate", WORDS)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("gate       Of all") and second.startswith(" " * 11 + "tower")
    assert f"{first[11:]} {second[11:]}" == WORDS and len(first) <= WIDTH


def test_markup_is_text(capsys):
    show_line("wrote", "a[red]b[/red].onnx")
    assert "a[red]b[/red].onnx" in capsys.readouterr().err


@pytest.mark.parametrize("width", [WIDTH, 40, 1])
def test_a_path_is_never_broken(width):
    path = "/data/" + "very-long-name/" * 12 + "x.mp4"
    assert path in folded("skipped", f"{path}: no frame", width)


@given(st.text(st.sampled_from("ab -.\t\n"), max_size=300), st.integers(22, WIDTH))
def test_nothing_is_lost_and_every_line_fits(text, width):
    lines = folded("label", text, width).splitlines()
    assert " ".join(lines).split()[1:] == text.split()
    assert all(len(line) <= width or " " not in line[11:] for line in lines)


def test_a_command_stays_whole(capsys):
    line = "tempme-export " + " ".join(f"--option-{i} value" for i in range(20))
    show_command("next", line)
    assert capsys.readouterr().err == f"next       {line}\n"


def test_a_warning_is_folded_too(capsys):
    show_warning(WORDS)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: Of all") and second.startswith(" " * 9) and len(first) <= WIDTH
    assert f"{first[9:]} {second[9:]}" == WORDS
