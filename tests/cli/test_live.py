"""What a person sees while a work goes on."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from rich.console import Console

from tempme_export.cli.live import Bars, Lines, listener

WORK = """
import time
from tempme_export.cli.live import listener

progress = listener({"str": lambda fact: None})
with progress.step("verifying the graph", 4, "batches") as step:
    for done in range(1, 5):
        step.advance(done, f"batch {done}")
        time.sleep(0.3)
with progress.step("tracing the graph"):
    time.sleep(0.6)
"""
ERASED = "\x1b[2K\x1b[?25h\r"  # the line is gone and the cursor is back
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def screen():
    """A terminal of 80 columns; its text is `screen.file.getvalue()`."""
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=20, color_system=None)


def drawn(screen):
    """Every line that was ever drawn."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", CONTROL.sub("", screen.file.getvalue())) if line.strip()]


class TestBars:
    def test_amounts_are_shown_and_gone_at_the_end(self, screen):
        progress = listener({}, screen, ticking=False)
        with progress.step("verifying", 9, "clips", done=2) as step:
            step.advance(3)
            step.advance(9, "the last")
        lines = drawn(screen)
        for line, words in zip(lines, ("2 of 9 clips", "3 of 9 clips", "9 of 9 clips"), strict=True):
            assert line.startswith("verifying") and words in line and "━" in line and "0:00:0" in line
        assert lines[-1].endswith("the last")
        assert screen.file.getvalue().endswith(ERASED)

    def test_no_bar_where_the_amount_is_not_known(self, screen):
        with listener({}, screen, ticking=False).step("tracing"):
            pass
        (line,) = drawn(screen)
        assert re.fullmatch(r"tracing\s+0:00:0\d", line)

    def test_percent(self, screen):
        with listener({}, screen, ticking=False).step("building", 100, "%") as step:
            step.advance(41.7, "tactics")
        assert "42 %" in drawn(screen)[-1] and "tactics" in drawn(screen)[-1]

    def test_a_step_within_another(self, screen):
        progress = listener({}, screen, ticking=False)
        with progress.step("outer", 2, "parts") as outer:
            with progress.step("inner", 5, "clips") as inner:
                inner.advance(4)
            outer.advance(1)
        lines = drawn(screen)
        assert any("inner" in line and "4 of 5 clips" in line for line in lines)
        assert "outer" in lines[-1] and "1 of 2 parts" in lines[-1]

    def test_the_next_step_starts_its_own_line(self, screen):
        progress = listener({}, screen, ticking=False)
        for name in ("first", "second"):
            with progress.step(name):
                pass
        assert [line.split()[0] for line in drawn(screen)] == ["first", "second"]

    def test_facts_stay_above_the_line(self, screen):
        progress = listener({"int": lambda fact: screen.print(f"found {fact}")}, screen, ticking=False)
        with progress.step("verifying"):
            progress.tell(3)
        assert "found 3" in drawn(screen)

    def test_names_are_no_markup_and_long_ones_are_cut(self, screen):
        with listener({}, screen, ticking=False).step("[red]x[/red] " + "y" * 100, 10, "clips") as step:
            step.advance(1, "z" * 100)
        assert all("[red]x" in line and len(line) <= 80 for line in drawn(screen))

    def test_a_failed_step_leaves_no_line(self, screen):
        with pytest.raises(ValueError, match="no"), listener({}, screen, ticking=False).step("verifying"):
            raise ValueError("no")
        assert screen.file.getvalue().endswith(ERASED)


class TestLines:
    def test_a_line_when_a_step_begins_and_one_when_it_ended(self, capsys):
        progress = Lines({"int": lambda fact: None})
        with progress.step("verifying", 9, "clips") as step:
            step.advance(4)
            progress.tell(3)
        with progress.step("building", 100, "%"):
            pass
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == "started    verifying, 9 clips" and lines[2] == "started    building"
        assert re.fullmatch(r"finished   verifying   \d+\.\d s", lines[1])
        assert re.fullmatch(r"finished   building   \d+\.\d s", lines[3])

    def test_what_failed_did_not_finish(self, capsys):
        with pytest.raises(ValueError, match="no"), Lines({}).step("verifying"):
            raise ValueError("no")
        assert capsys.readouterr().err == "started    verifying\n"


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bars), (False, Lines)])
def test_who_listens(terminal, kind):
    assert type(listener({}, Console(file=io.StringIO(), force_terminal=terminal, _environ={}))) is kind


def test_a_terminal_that_cannot_move_its_cursor_has_lines():
    dumb = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    assert type(listener({}, dumb)) is Lines


def run(terminal):
    """What the program WORK writes to stderr."""
    if not terminal:
        return subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True).stderr
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    with subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs, stdout=subprocess.PIPE, env=environment) as work:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 4096):
                said += part
        except OSError:  # Linux says so when the last one who writes has gone
            pass
        assert work.stdout.read() == b""
    os.close(ours)
    assert work.returncode == 0
    return said.decode()


def test_time_passes_on_a_real_terminal():
    """A thread redraws the line while nothing advances."""
    said = run(terminal=True)
    lines = [line for line in re.split(r"[\r\n]+", CONTROL.sub("", said)) if line.strip()]
    assert any("verifying the graph" in line and "of 4 batches" in line for line in lines)
    assert sum("tracing the graph" in line for line in lines) >= 2
    assert all(len(line.rstrip()) <= 80 for line in lines)
    assert said.endswith(ERASED)


def test_no_control_characters_elsewhere():
    said = run(terminal=False)
    assert [line.split()[0] for line in said.splitlines()] == ["started", "finished"] * 2
    assert "\x1b" not in said and "\r" not in said
