"""Worker processes: answers in order, whatever ends early, and no process left behind."""

import multiprocessing
import os
import signal
import struct
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempme_export.data import workers
from tempme_export.data.workers import answers, cpu_share
from tempme_export.errors import ExportError, InputError
from tempme_export.media.video import sample_positions

# The job of these is a function that every process knows, and the "clips" are its arguments.


def refusal(error, call, *arguments, **named):
    with pytest.raises(error, match=r"found (.|\n)*expected (.|\n)*\.") as caught:
        call(*arguments, **named)
    return str(caught.value)


def no_processes():
    names = [one.name for one in (*multiprocessing.active_children(), *threading.enumerate())]
    return [name for name in names if name.startswith("decode")] == []


def test_workers_go_on_while_the_caller_is_busy(tmp_path):
    """Each path is a program; all that may run ahead have run although nobody asks for them."""
    programs = [f"open({str(tmp_path / str(number))!r}, 'w').close()" for number in range(9)]
    found = answers(exec, programs, 1)
    next(found)
    until = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]
    found.close()


def test_closing_early_ends_the_processes(preprocess):
    """Also those in the middle of something long."""
    found = answers(eval, ["1", "__import__('time').sleep(600)", "2", "3"], 2)
    assert next(found) == (0, 1)
    assert not no_processes()
    found.close()
    assert no_processes()


def test_a_killed_worker_is_an_error_that_names_the_video():
    kill = f"__import__('os').kill(__import__('os').getpid(), {int(signal.SIGKILL)})"
    found = answers(eval, ["1", "2", kill, "4", "5", "6", "7"], 2)
    assert [next(found), next(found)] == [(0, 1), (1, 2)]
    said = refusal(ExportError, next, found)
    assert said.startswith(kill) and "SIGKILL" in said and "fewer workers" in said
    assert no_processes()


def test_all_workers_ending_is_an_error():
    said = refusal(ExportError, list, answers(os._exit, [7] * 9, 2))
    assert "exit code 7" in said and "__main__" in said
    assert no_processes()


def test_a_worker_that_dies_in_the_middle_of_an_answer():
    class Ended:
        exitcode = -signal.SIGSEGV

        def join(self, timeout=None):
            pass

    worker = workers._Worker.__new__(workers._Worker)
    worker._pipe, theirs = multiprocessing.Pipe()
    worker._process = Ended()
    os.write(theirs.fileno(), struct.pack("!i", 1000) + b"half")
    theirs.close()
    assert "SIGSEGV" in refusal(ExportError, worker.ask, Path("a.mp4"))


def test_a_bug_in_a_worker_keeps_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)^twelve: a bug.*Traceback.*invalid literal for int.*'twelve'"):
        list(answers(int, ["12", "twelve"], 1))
    assert no_processes()


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_are_raised_as_they_are(workers):
    """PyAV missing concerns every video; here a function of the package that raises InputError."""
    with pytest.raises(InputError, match="found 0 frames to read") as caught:
        list(answers(partial(sample_positions, fps=25.0, frames=0), [5], workers))
    assert type(caught.value) is InputError


def test_workers_are_light():
    ask = "'torch' in __import__('sys').modules"
    assert list(answers(eval, [ask], 1)) == [(0, False)]


# CPUs


@given(cpus=st.integers(1, 70), workers=st.integers(1, 70))
def test_cpus_are_shared_out(cpus, workers):
    names = list(range(3, 3 + 2 * cpus, 2))
    shares = [cpu_share(names, share, workers) for share in range(workers)]
    times = [sum(name in share for share in shares) for name in names]
    sizes = [len(share) for share in shares]
    assert sum(times) == sum(sizes) == max(cpus, workers)
    assert max(times) - min(times) <= 1 and max(sizes) - min(sizes) <= 1 <= min(sizes)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes to CPUs")
def test_workers_keep_to_their_share():
    cpus = sorted(os.sched_getaffinity(0))
    ask = "__import__('os').sched_getaffinity(0)"
    found = [answer for _, answer in answers(eval, [ask] * 4, 2)]
    shares = {frozenset(cpu_share(cpus, share, 2)) for share in (0, 1)}
    assert len(found) == 4 and {frozenset(share) for share in found} <= shares, "one may be quicker and answer all"
    assert sorted(os.sched_getaffinity(0)) == cpus


# scripts that end


BUSY = "found = answers(eval, ['1'] + [\"__import__('time').sleep(600)\"] * 9, 2); next(found); print('on', flush=True)"


@pytest.mark.parametrize("goes_on", ["next(found)", "time.sleep(600)"])
def test_ctrl_c_leaves_no_process_and_one_traceback(start, wait_for_the_group, goes_on):
    """Also while the generator waits for its caller, whose frame keeps it from being closed."""
    process = start(f"{BUSY}; {goes_on}")
    assert process.stdout.readline() == "on\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") == said.count("KeyboardInterrupt") == 1, said
    assert wait_for_the_group(process)


def test_a_killed_parent_leaves_no_idle_process(start, wait_for_the_group):
    """A busy worker stops after the video in hand; these two sleep a second."""
    process = start(BUSY.replace("600", "1") + "; time.sleep(600)")
    assert process.stdout.readline() == "on\n"
    process.kill()
    process.wait()
    assert wait_for_the_group(process)
    assert process.stderr.read() == ""
