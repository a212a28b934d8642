"""Processes that answer for clips: a crew of them, one clip at a time each, and the answers in order."""

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from tempme_export.data.clip import Clip
from tempme_export.errors import ExportError, InputError, TempMeExportError

_Answer = TypeVar("_Answer")
_Task = tuple[Clip, Future[_Answer]]


def answers(
    job: Callable[[Clip], _Answer], clips: Sequence[Clip], workers: int
) -> Generator[tuple[int, _Answer], None, None]:
    """The answers of a job in the order of the clips. What the job raises is raised here.

    At most 2 * workers + 2 clips are taken ahead of the one asked for. Closing the generator ends the processes, also
    in the middle of a video.

    job      can be pickled, and so can what it answers
    workers  processes; 0: this one
    Raises ExportError when a process dies, InputError for fewer than 0 workers.
    """
    if workers < 0:
        raise InputError(f"found {workers} worker processes, expected 0, for none, or more. Ask for another number.")
    if workers == 0:
        return ((index, job(clip)) for index, clip in enumerate(clips))
    return _in_processes(job, clips, min(workers, len(clips)))


def _in_processes(
    job: Callable[[Clip], _Answer], clips: Sequence[Clip], workers: int
) -> Generator[tuple[int, _Answer], None, None]:
    """A thread for each process hands it one clip at a time and takes the answer, also while the caller is busy."""
    tasks: SimpleQueue[_Task[_Answer] | None] = SimpleQueue()
    crew: list[tuple[_Worker[_Answer], threading.Thread]] = []
    try:
        for share in range(workers):
            worker = _Worker(job, share, workers)
            # Daemons, since a program that is interrupted and still holds the generator shall not wait for them.
            thread = threading.Thread(target=_tend, args=(worker, tasks), name=f"decode-{share}", daemon=True)
            thread.start()
            crew.append((worker, thread))
        ahead: deque[Future[_Answer]] = deque()
        waiting = iter(clips)
        for index in range(len(clips)):
            while len(ahead) < 2 * workers + 2 and (clip := next(waiting, None)) is not None:
                ahead.append(Future())
                tasks.put((clip, ahead[-1]))
            yield index, ahead.popleft().result()
    finally:
        for worker, _ in crew:
            worker.kill()
        for _ in crew:
            tasks.put(None)
        for _, thread in crew:
            thread.join()


def _tend(worker: "_Worker[_Answer]", tasks: "SimpleQueue[_Task[_Answer] | None]") -> None:
    """Hand tasks to a worker until None comes. A dead one takes tasks too, so that nobody waits for ever."""
    while (task := tasks.get()) is not None:
        clip, answer = task
        try:
            answer.set_result(worker.ask(clip))
        except Exception as error:
            answer.set_exception(error)


class _Worker(Generic[_Answer]):
    """A process of its own that answers for one clip at a time.

    Not a ProcessPoolExecutor: there all workers share one pipe, and one that is killed in the middle of a long answer
    leaves the reader waiting for the rest for ever. Here the pipe ends with the process, and the clip is known.
    """

    def __init__(self, job: Callable[[Clip], _Answer], share: int, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, job, share, workers), name=f"decode-{share}", daemon=True
        )
        with _without_interrupts():
            self._process.start()  # with Ctrl-C blocked for good, which reaches it too: the parent ends it
        theirs.close()

    def ask(self, clip: Clip) -> _Answer:
        try:
            self._pipe.send(clip)
            answer, error = self._pipe.recv()
        except (EOFError, OSError) as ended:
            raise ExportError(f"{clip}: {self._last_words()}") from ended
        if isinstance(error, str):
            raise RuntimeError(f"{clip}: {error}")
        if error is not None:
            raise error
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def _last_words(self) -> str:
        self._process.join(timeout=10)
        code = self._process.exitcode
        if code is not None and code < 0:
            return (
                f"found the process that was reading this video killed by {signal.Signals(-code).name}, expected "
                "frames. Use fewer workers if memory ran out; if it stays so, re-encode this video or leave it out."
            )
        return (
            f"found the process that was reading this video ended with exit code {code}, expected frames. A script "
            "that starts worker processes needs `if __name__ == '__main__':` around what it does, or 0 workers."
        )


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C waits; on Windows, where nothing holds it back, it comes."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # the start of a process would, and end the blocking with it
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _serve(pipe: Connection, job: Callable[[Clip], Any], share: int, workers: int) -> None:
    """A worker process: answer (value, None) or (None, error) until the other end is gone."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpu_share(sorted(os.sched_getaffinity(0)), share, workers))
    try:
        while True:
            clip = pipe.recv()
            pipe.send(_attempt(job, clip))
    except (EOFError, OSError):
        return


def cpu_share(cpus: Sequence[int], share: int, workers: int) -> set[int]:
    """The CPUs of one worker of several: every CPU is used, none more often than needed.

    FFmpeg starts a thread for each CPU it may use. With all CPUs open to every worker the threads outnumber the CPUs:
    two workers on two CPUs took about 1.4 times as long.
    """
    return set(cpus[share % len(cpus) :: workers])


def _attempt(job: Callable[[Clip], Any], clip: Clip) -> tuple[Any, TempMeExportError | str | None]:
    try:
        return job(clip), None
    except TempMeExportError as error:
        return None, error
    except Exception:
        return None, f"a bug in the worker process\n{traceback.format_exc()}"
