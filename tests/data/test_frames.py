"""Decoding in processes equals decoding here, whatever ends early; the cache gives back what was decoded."""

import multiprocessing
import operator
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempme_export.data import frames as module
from tempme_export.data.clip import Clip
from tempme_export.data.frames import FrameCache, FrameFiles, cpu_share, decode, probe
from tempme_export.errors import BackendError, ExportError, InputError, VideoError
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.video import read_frames, sample_positions

pytest.importorskip("av")

F = 3


@pytest.fixture
def mixed(clips, unreadable):
    """Readable and unreadable paths in turn, and what to expect of each: frames, or None."""
    paths = [clips[0], unreadable["missing"], clips[1], unreadable["noise"], clips[2], unreadable["cut"], clips[3]]
    return paths, [None if path in unreadable.values() else path for path in paths]


@pytest.fixture
def pixels(preprocess):
    """A video's frames by definition."""
    return lambda path: preprocess.crop(read_frames(path, F))


@pytest.fixture
def own(clips, tmp_path):
    """Copies of the clips, to be changed."""
    folder = tmp_path / "own"
    folder.mkdir()
    return [Path(shutil.copy2(clip, folder)) for clip in clips]


def whole(paths):
    """Each of the files from its beginning to its end."""
    return tuple(map(Clip, paths))


def refusal(error, call, *arguments, **named):
    with pytest.raises(error, match=r"found (.|\n)*expected (.|\n)*;") as caught:
        call(*arguments, **named)
    return str(caught.value)


def no_processes():
    names = [one.name for one in (*multiprocessing.active_children(), *threading.enumerate())]
    return [name for name in names if name.startswith("decode")] == []


# decode


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_in_order_and_what_is_wrong_beside_them(mixed, preprocess, pixels, workers):
    paths, readable = mixed
    answers = list(decode(whole(paths), F, preprocess, workers))
    assert [index for index, _ in answers] == list(range(len(paths)))
    for (_, answer), path, good in zip(answers, paths, readable, strict=True):
        if good is None:
            assert isinstance(answer, VideoError) and str(path) in str(answer) and "expected" in str(answer)
        else:
            assert answer.dtype == np.uint8
            np.testing.assert_array_equal(answer, pixels(good))
    assert no_processes()


def test_nothing_to_decode(preprocess):
    assert list(decode([], F, preprocess, 2)) == list(decode([], F, preprocess, 0)) == []


class Watched(list):
    """A list that knows how many of its items were taken."""

    taken = 0

    def __iter__(self):
        for item in super().__iter__():
            self.taken += 1
            yield item


@pytest.mark.parametrize(("workers", "ahead"), [(0, 1), (2, 6)])
def test_look_ahead_is_bounded(clips, preprocess, workers, ahead):
    paths = Watched([Clip(clips[3])] * 12)
    answers = decode(paths, F, preprocess, workers)
    assert paths.taken == 0
    next(answers)
    assert paths.taken == ahead
    next(answers)
    assert paths.taken == ahead + 1
    answers.close()


def test_workers_go_on_while_the_caller_is_busy(tmp_path):
    """Each path is a program; all that may run ahead have run although nobody asks for them."""
    programs = [f"open({str(tmp_path / str(number))!r}, 'w').close()" for number in range(9)]
    answers = module._each(exec, programs, 1)
    next(answers)
    until = time.monotonic() + 20
    while len(list(tmp_path.iterdir())) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]
    answers.close()


def test_closing_early_ends_the_processes(preprocess):
    """Also those in the middle of something long."""
    answers = module._each(eval, ["1", "__import__('time').sleep(600)", "2", "3"], 2)
    assert next(answers) == (0, 1)
    assert not no_processes()
    answers.close()
    assert no_processes()


def test_an_error_of_the_caller_ends_the_processes(clips, preprocess):
    with pytest.raises(ZeroDivisionError):
        for _ in decode([Clip(clips[3])] * 9, F, preprocess, 1):
            raise ZeroDivisionError
    assert no_processes()


# The job of these is a function that every process knows, and the "paths" are its arguments.


def test_a_killed_worker_is_an_error_that_names_the_video():
    kill = f"__import__('os').kill(__import__('os').getpid(), {int(signal.SIGKILL)})"
    answers = module._each(eval, ["1", "2", kill, "4", "5", "6", "7"], 2)
    assert [next(answers), next(answers)] == [(0, 1), (1, 2)]
    said = refusal(ExportError, next, answers)
    assert said.startswith(kill) and "SIGKILL" in said and "fewer workers" in said
    assert no_processes()


def test_all_workers_ending_is_an_error():
    said = refusal(ExportError, list, module._each(os._exit, [7] * 9, 2))
    assert "exit code 7" in said and "__main__" in said
    assert no_processes()


def test_a_worker_that_dies_in_the_middle_of_an_answer():
    class Ended:
        exitcode = -signal.SIGSEGV

        def join(self, timeout=None):
            pass

    worker = module._Worker.__new__(module._Worker)
    worker._pipe, theirs = multiprocessing.Pipe()
    worker._process = Ended()
    os.write(theirs.fileno(), struct.pack("!i", 1000) + b"half")
    theirs.close()
    assert "SIGSEGV" in refusal(ExportError, worker.ask, Path("a.mp4"))


def test_a_bug_in_a_worker_keeps_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)^twelve: a bug.*Traceback.*invalid literal for int.*'twelve'"):
        list(module._each(int, ["12", "twelve"], 1))
    assert no_processes()


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_are_raised_as_they_are(workers):
    """PyAV missing concerns every video; here a function of the package that raises InputError."""
    with pytest.raises(InputError, match="found 0 frames wanted") as caught:
        list(module._each(partial(sample_positions, fps=25.0, frames=0), [5], workers))
    assert type(caught.value) is InputError


def test_missing_pyav_is_no_failure_of_the_video(clips, preprocess, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendError, match="PyAV"):
        list(decode(whole(clips), F, preprocess, 0))
    with pytest.raises(BackendError, match="PyAV"):
        FrameCache.open(tmp_path / "cache", whole(clips), F, preprocess)
    assert not list(tmp_path.iterdir())
    with pytest.raises(BackendError, match="PyAV"):
        probe(whole(clips))
    job = partial(module._read, frames=F, preprocess=preprocess, allow_damaged=False)
    answer, error = module._attempt(job, Clip(clips[0]))
    assert answer is None and type(pickle.loads(pickle.dumps(error))) is BackendError


def test_frames_that_cannot_be_cropped_are_a_failure_of_the_video(clips):
    class Refuses(Preprocess):
        def crop(self, frames):
            raise InputError("found x; expected y; do z")

    ((_, answer),) = decode([Clip(clips[3])], F, Refuses(30, (0, 0, 0), (1, 1, 1)), 0)
    assert isinstance(answer, VideoError) and str(answer) == f"{clips[3]}: found x; expected y; do z"


def test_refused_requests(clips, preprocess):
    assert "0 frames wanted" in refusal(InputError, decode, whole(clips), 0, preprocess, 0)
    for call in (lambda: decode(whole(clips), F, preprocess, -1), lambda: probe(whole(clips), -1)):
        assert "-1 worker processes" in refusal(InputError, call)


def test_workers_are_light():
    code = (
        "import sys, tempme_export.data.frames; sys.exit(len({'torch', 'av', 'onnx', 'polars'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    ask = "'torch' in __import__('sys').modules"
    assert list(module._each(eval, [ask], 1)) == [(0, False)]


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
    found = [answer for _, answer in module._each(eval, [ask] * 4, 2)]
    shares = {frozenset(cpu_share(cpus, share, 2)) for share in (0, 1)}
    assert len(found) == 4 and {frozenset(share) for share in found} <= shares, "one may be quicker and answer all"
    assert sorted(os.sched_getaffinity(0)) == cpus


# scripts that end


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from tempme_export.data.clip import Clip
from tempme_export.data.frames import FrameCache, _each, decode
from tempme_export.media.preprocess import Preprocess

def main():
    preprocess = Preprocess(30, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    {body}

{guard}main()
"""
GUARD = "if __name__ == '__main__': "
BUSY = (
    "answers = _each(eval, ['1'] + [\"__import__('time').sleep(600)\"] * 9, 2); next(answers); print('on', flush=True)"
)


@pytest.fixture
def start(tmp_path):
    """Start a script in a process group of its own, which is killed at the end."""
    started = []

    def run(body, *arguments, guard=GUARD):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(body=body, guard=guard))
        process = subprocess.Popen(
            [sys.executable, script, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if group_is_alive(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def group_is_alive(process):
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_the_group(process):
    until = time.monotonic() + 20
    while group_is_alive(process) and time.monotonic() < until:
        time.sleep(0.02)
    return not group_is_alive(process)


@pytest.mark.parametrize("goes_on", ["next(answers)", "time.sleep(600)"])
def test_ctrl_c_leaves_no_process_and_one_traceback(start, goes_on):
    """Also while the generator waits for its caller, whose frame keeps it from being closed."""
    process = start(f"{BUSY}; {goes_on}")
    assert process.stdout.readline() == "on\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
    _, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") == said.count("KeyboardInterrupt") == 1, said
    assert wait_for_the_group(process)


def test_a_killed_parent_leaves_no_idle_process(start):
    """A busy worker stops after the video in hand; these two sleep a second."""
    process = start(BUSY.replace("600", "1") + "; time.sleep(600)")
    assert process.stdout.readline() == "on\n"
    process.kill()
    process.wait()
    assert wait_for_the_group(process)
    assert process.stderr.read() == ""


def test_a_script_without_a_guard_is_told(start, clips):
    process = start("list(decode([Clip(Path(sys.argv[1]))], 3, preprocess, 1))", clips[3], guard="")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "if __name__ == '__main__':" in said.splitlines()[-1] and str(clips[3]) in said.splitlines()[-1]


# FrameCache


def contents(folder):
    return [
        (folder / name).read_bytes() for name in ("rows.bin", "done.bin", "made_from/rows.bin", "made_from/done.bin")
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_gives_back_what_was_decoded(mixed, preprocess, pixels, tmp_path, workers):
    paths, readable = mixed
    cache = FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess)
    calls = []
    cache.fill(workers, lambda done, total: calls.append((done, total)))
    assert calls == [(done, 7) for done in range(8)]
    again = FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess)
    for found in (cache, again):
        assert (len(found), found.frames, found.size) == (7, F, 30)
        for i, path in enumerate(readable):
            if path is not None:
                assert found[i].dtype == np.uint8
                np.testing.assert_array_equal(found[i], pixels(path))
        assert sorted(found.failures) == [1, 3, 5]
        assert all(reason.startswith(str(paths[i])) for i, reason in found.failures.items())
        np.testing.assert_array_equal(found.batch([6, 0, 6]), [pixels(paths[6]), pixels(paths[0]), pixels(paths[6])])
        assert found.batch(np.array([2])).shape == (1, F, 30, 30, 3)


def test_frames_are_copies(clips, preprocess, pixels, tmp_path):
    cache = FrameCache.open(tmp_path, whole(clips), F, preprocess)
    cache.fill(0)
    for copy in (cache[1], cache.batch([1])[0]):
        assert type(copy) is np.ndarray
        copy[:] = 0
    np.testing.assert_array_equal(cache[1], pixels(clips[1]))


def test_what_is_not_there_is_refused(mixed, preprocess, tmp_path):
    cache = FrameCache.open(tmp_path, whole(mixed[0]), F, preprocess)
    with pytest.raises(InputError, match="fill it first") as caught:
        cache.batch([0])
    assert not isinstance(caught.value, VideoError)  # nobody may skip it as unreadable
    cache.fill(0)
    for ask in (lambda: cache[3], lambda: cache.batch([0, 3, 1])):
        with pytest.raises(VideoError, match="noise"):
            ask()
    for i in (-1, 7):
        with pytest.raises(IndexError):
            cache[i]
    assert cache.batch([]).shape == (0, F, 30, 30, 3)


@pytest.fixture
def reads(monkeypatch):
    """The paths that were read, in this process."""
    found, read = [], module._read

    def spy(clip, *arguments, **named):
        found.append(clip.path)
        return read(clip, *arguments, **named)

    monkeypatch.setattr(module, "_read", spy)
    return found


def test_an_interrupted_fill_goes_on(mixed, preprocess, tmp_path, reads):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    paths, _ = mixed
    cache = FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess)
    with pytest.raises(KeyboardInterrupt):
        cache.fill(0, stop)
    assert reads == paths[:3]
    calls = []
    FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess).fill(0, lambda *call: calls.append(call))
    assert reads == paths
    assert calls == [(done, 7) for done in range(3, 8)]
    full = FrameCache.open(tmp_path / "whole", whole(paths), F, preprocess)
    full.fill(0)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_fill_goes_on(start, mixed, preprocess, tmp_path, reads, workers):
    paths, _ = mixed
    body = (
        "FrameCache.open(Path(sys.argv[1]), [Clip(Path(name)) for name in sys.argv[3:]], 3, preprocess)"
        ".fill(int(sys.argv[2]), lambda done, total: done == 4 and os.kill(os.getpid(), signal.SIGKILL))"
    )
    process = start(body, tmp_path / "cache", workers, *paths)
    assert process.wait(60) == -signal.SIGKILL, process.stderr.read()
    cache = FrameCache.open(tmp_path / "cache", whole(paths), F, preprocess)
    assert cache.rows.todo() == [4, 5, 6]
    cache.fill(0)
    assert reads == paths[4:]
    full = FrameCache.open(tmp_path / "whole", whole(paths), F, preprocess)
    full.fill(0)
    assert contents(tmp_path / "cache") == contents(tmp_path / "whole")
    assert cache.failures == full.failures


def test_failures_are_tried_again_when_asked(own, preprocess, pixels, tmp_path, reads):
    content = own[2].read_bytes()
    own[2].write_bytes(content[:500])
    own[4].unlink()
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    cache.fill(0)
    assert sorted(cache.failures) == [2, 4]
    own[2].write_bytes(content)
    reads.clear()
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)  # a mended file is no changed one
    cache.fill(0)
    assert reads == [] and sorted(cache.failures) == [2, 4]
    calls = []
    cache.fill(0, lambda *call: calls.append(call), retry_failed=True)
    assert reads == [own[2], own[4]] and calls == [(3, 5), (4, 5), (5, 5)]
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    assert list(cache.failures) == [4] and "no such file" in cache.failures[4]
    np.testing.assert_array_equal(cache[2], pixels(own[2]))


def touch(path):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def grow(path):
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [touch, grow])
def test_a_changed_video_is_read_again(own, preprocess, tmp_path, reads, change):
    FrameCache.open(tmp_path / "cache", whole(own), F, preprocess).fill(0)
    change(own[1])
    change(own[3])
    reads.clear()
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    with pytest.raises(InputError, match="fill it first"):
        cache.batch([0, 3])
    cache.fill(0)
    assert reads == [own[1], own[3]]
    assert cache.batch([0, 1, 2, 3, 4]).shape == (5, F, 30, 30, 3)


def test_a_video_that_changes_while_filling_is_noticed(own, preprocess, tmp_path):
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    cache.fill(0, lambda done, total: done == 1 and touch(own[2]))
    assert FrameCache.open(tmp_path / "cache", whole(own), F, preprocess).rows.todo() == [2]


def test_a_deleted_video_is_not_missed(own, preprocess, pixels, tmp_path):
    FrameCache.open(tmp_path / "cache", whole(own), F, preprocess).fill(0)
    expected = pixels(own[1])
    own[1].unlink()
    cache = FrameCache.open(tmp_path / "cache", whole(own), F, preprocess)
    np.testing.assert_array_equal(cache[1], expected)
    assert cache.failures == {}


def test_another_request_is_another_key(clips, preprocess, tmp_path):
    FrameCache.open(tmp_path, whole(clips), F, preprocess)
    FrameCache.open(tmp_path, whole(clips), F, Preprocess(30, (0, 0, 0), (1, 1, 1)))  # of no matter to uint8
    for said, frames, size in (
        ("shape [3, 30, 30, 3], frames 3; expected shape [4, 30, 30, 3], frames 4;", 4, 30),
        ("shape [3, 30, 30, 3], size 30; expected shape [3, 28, 28, 3], size 28;", F, 28),
    ):
        other = Preprocess(size, preprocess.mean, preprocess.std)
        assert said in refusal(InputError, FrameCache.open, tmp_path, whole(clips), frames, other)


def test_another_decoder_is_another_key(clips, preprocess, tmp_path, monkeypatch):
    FrameCache.open(tmp_path, whole(clips), F, preprocess)
    monkeypatch.setattr(module, "decoder_version", lambda: "another")
    said = refusal(InputError, FrameCache.open, tmp_path, whole(clips), F, preprocess)
    assert "decoder PyAV" in said and "expected decoder another; delete" in said


def test_one_more_clip_reads_one(clips, preprocess, pixels, tmp_path, reads):
    """Also in another order, and a range of a file beside the whole of it."""
    first = FrameCache.open(tmp_path, whole(clips[:3]), F, preprocess)
    first.fill(0)
    reads.clear()
    part = Clip(clips[0], 2.0, 5.0)
    cache = FrameCache.open(tmp_path, [Clip(clips[2]), part, Clip(clips[0]), Clip(clips[1])], F, preprocess)
    cache.fill(0)
    assert reads == [clips[0]]
    found = cache.batch([0, 1, 2, 3])
    expected = [pixels(clips[2]), preprocess.crop(read_frames(part.path, F, 2.0, 5.0)), *map(pixels, clips[:2])]
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found[1], found[2])
    np.testing.assert_array_equal(first.batch([1]), found[3:])  # who opened it before reads on


def test_what_was_read_strictly_serves_those_who_allow_damage_and_not_the_other_way(own, preprocess, tmp_path):
    """Whether a file is damaged is said here by what reads it."""
    asked = []

    def read(clip, frames, preprocess, allow_damaged):
        asked.append((clip.path, allow_damaged))
        if clip.path == own[1] and not allow_damaged:
            return VideoError("torn")
        return np.full((frames, 30, 30, 3), 1 + allow_damaged, np.uint8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_read", read)
        for allow, read_now in (
            (False, own[:3]),
            (True, [own[1]]),
            (True, []),
            (False, [own[1]]),
            (False, []),
            (True, [own[1]]),
        ):
            asked.clear()
            cache = FrameCache.open(tmp_path / "cache", whole(own[:3]), F, preprocess, allow)
            cache.fill(0)
            assert asked == [(path, allow) for path in read_now]
            assert list(cache.failures) == ([] if allow else [1])
            assert [int(cache[i].max()) for i in range(3) if i not in cache.failures] == (
                [1, 2, 1] if allow else [1, 1]
            )


def test_no_frames_or_videos_to_keep(clips, preprocess, tmp_path):
    for paths, frames in (((), F), (clips, 0)):
        refusal(InputError, FrameCache.open, tmp_path / "cache", whole(paths), frames, preprocess)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_fill_one_cache(clips, preprocess, tmp_path, reads):
    first, second = (FrameCache.open(tmp_path, whole(clips), F, preprocess) for _ in range(2))
    said = []
    first.fill(0, lambda done, total: said.append(refusal(InputError, second.fill, 0)))
    assert len(said) == 6 and all("being filled by another process" in line for line in said)
    assert reads == list(clips)
    second.fill(0)
    assert reads == list(clips)


@pytest.mark.parametrize(("n", "frames", "size"), [(5, 3, 30), (2, 1, 7)])
def test_the_estimate_is_what_it_takes(clips, tmp_path, n, frames, size):
    FrameCache.open(tmp_path, whole(clips[:n]), frames, Preprocess(size, (0, 0, 0), (1, 1, 1)))
    assert FrameCache.estimate(n, frames, size) == sum(path.stat().st_size for path in tmp_path.rglob("*.bin"))


# FrameFiles


def test_files_are_decoded_at_each_access(mixed, preprocess, pixels, reads):
    paths, _ = mixed
    source = FrameFiles(whole(paths), F, preprocess)
    assert (len(source), source.frames, source.size, source.failures) == (7, F, 30, {})
    for _ in range(2):
        np.testing.assert_array_equal(source[2], pixels(paths[2]))
    assert reads == [paths[2]] * 2
    np.testing.assert_array_equal(source.batch([4, 0]), [pixels(paths[4]), pixels(paths[0])])
    assert source.batch([]).shape == (0, F, 30, 30, 3)


def test_a_failed_file_is_not_read_again(mixed, preprocess, reads):
    paths, _ = mixed
    source = FrameFiles(whole(paths), F, preprocess)
    messages = []
    for ask in (lambda: source[1], lambda: source[np.int64(1)], lambda: source.batch([0, 1])):
        with pytest.raises(VideoError) as caught:
            ask()
        messages.append(str(caught.value))
    assert reads == [paths[1], paths[0]]
    assert set(messages) == {source.failures[1]} and list(source.failures) == [1]
    for i in (-1, 7):
        with pytest.raises(IndexError):
            source[i]


# probe


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_found_without_decoding(mixed, unreadable, clips, workers, monkeypatch):
    paths = [*mixed[0], unreadable["empty"]]
    monkeypatch.setattr(module, "read_frames", lambda *_: pytest.fail("this decodes"))
    calls = []
    found = probe(whole(paths), workers, lambda *call: calls.append(call))
    assert list(found) == [1, 3, 5, 7]
    assert all(reason.startswith(str(paths[i])) for i, reason in found.items())
    for i, reason in zip(found, ("no such file", "no readable video", "", "empty file"), strict=True):
        assert reason in found[i]
    assert calls == [(done, 8) for done in range(1, 9)]
    assert probe(whole(clips)) == {} and operator.not_(probe([]))
