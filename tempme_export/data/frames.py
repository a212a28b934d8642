"""Decoded frames of many videos: worker processes, a cache on disk, and one way to ask for either."""

import importlib.metadata
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tempme_export.data.clip import Clip
from tempme_export.data.clip_rows import ClipRows
from tempme_export.errors import ExportError, InputError, TempMeExportError, VideoError
from tempme_export.media.preprocess import Preprocess
from tempme_export.media.video import check_video, decoder_version, read_frames

Progress = Callable[[int, int], None]  # done, total

_Answer = TypeVar("_Answer")
_Task = tuple[Clip, Future[_Answer]]


@dataclass(frozen=True, kw_only=True)
class ChangedClip(Clip):
    """A clip whose frames [F, H, W, 3] are changed before they are resized, by the process that decodes them."""

    change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def decode(
    clips: Sequence[Clip], frames: int, preprocess: Preprocess, workers: int, allow_damaged: bool = False
) -> Generator[tuple[int, NDArray[np.uint8] | VideoError], None, None]:
    """Read the sampled frames of many clips, in order.

    At most 2 * workers + 2 videos are decoded ahead of the one asked for. Closing the generator ends the processes,
    also in the middle of a video.

    workers        processes; 0 decodes in this one
    allow_damaged  take damaged pictures as the decoder shows them
    Yields (index, uint8 [F, S, S, 3]), or (index, VideoError) for a video that cannot be read. Raises BackendError
    without PyAV, ExportError when a process dies, InputError for fewer than 1 frame or 0 workers.
    """
    if frames < 1:
        raise InputError(f"found {frames} frames wanted; expected at least 1; ask for more")
    job = partial(_read, frames=frames, preprocess=preprocess, allow_damaged=allow_damaged)
    return _each(job, clips, workers)


def probe(clips: Sequence[Clip], workers: int = 0, progress: Progress | None = None) -> dict[int, str]:
    """Find files that are missing, empty, no video or cut short, without decoding: index -> what is wrong.

    Raises what `decode` raises.
    """
    found = {}
    with closing(_each(_complaint, clips, workers)) as answers:
        for index, complaint in answers:
            if complaint is not None:
                found[index] = complaint
            if progress:
                progress(index + 1, len(clips))
    return found


def made_by(frames: int, size: int) -> dict[str, Any]:
    """What makes a file's frames what they are: a part of the key of everything that is kept of them.

    Raises BackendError without PyAV.
    """
    return {
        "frames": frames,
        "size": size,
        "decoder": decoder_version(),
        **{name: importlib.metadata.version(name) for name in ("pillow", "tempme-export")},
    }


class FrameSource(Protocol):
    """Frames of numbered clips, as uint8 [F, S, S, 3] each."""

    @property
    def frames(self) -> int:
        """F, frames per clip."""

    @property
    def size(self) -> int:
        """S, the side of a frame in pixels."""

    @property
    def allow_damaged(self) -> bool:
        """Whether damaged pictures are among them."""

    @property
    def failures(self) -> dict[int, str]:
        """What is wrong with each clip that is known to be unreadable, by its index."""

    def __len__(self) -> int:
        """Number of clips."""

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """One clip's frames, a copy. Raises VideoError when it cannot be read; IndexError."""

    def batch(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """The frames of several clips, uint8 [B, F, S, S, 3], a copy. Raises as [] does."""


@dataclass(frozen=True, eq=False)
class FrameCache:
    """Frames kept on disk, decoded once.

    The folder belongs to the number of frames, the image size and what decoded and resized them; mean and standard
    deviation are free. It may hold other clips too: each is found by its path and range.

    rows  uint8 [n, F, S, S, 3]
    """

    clips: tuple[Clip, ...]
    frames: int
    preprocess: Preprocess
    allow_damaged: bool
    rows: ClipRows

    @classmethod
    def open(
        cls, folder: Path, clips: Sequence[Clip], frames: int, preprocess: Preprocess, allow_damaged: bool = False
    ) -> "FrameCache":
        """Open a cache, or make one, with a place for each of the clips.

        Raises InputError when the folder holds something else, or frames of other kinds; ExportError when the disk has
        no room for all frames; BackendError without PyAV.
        """
        shape = (frames, preprocess.size, preprocess.size, 3)
        rows = ClipRows(folder, made_by(frames, preprocess.size), clips, shape, "uint8", allow_damaged)
        return cls(tuple(clips), frames, preprocess, allow_damaged, rows)

    @staticmethod
    def estimate(n: int, frames: int, size: int) -> int:
        """Bytes of disk for n clips."""
        return ClipRows.estimate(n, (frames, size, size, 3), "uint8")

    def fill(self, workers: int, progress: Progress | None = None, retry_failed: bool = False) -> None:
        """Decode what is missing and what was replaced; what is there already stays.

        workers       processes; 0 decodes in this one
        progress      called with clips done, failed ones with them, and their total: first for what was there already
        retry_failed  try those again that failed earlier
        Raises InputError when another process is filling this cache, and what `decode` raises.
        """
        with self.rows.locked():
            todo = self.rows.todo(retry_failed)
            done = len(self) - len(todo)
            if progress:
                progress(done, len(self))
            wanted = [self.clips[i] for i in todo]
            with closing(decode(wanted, self.frames, self.preprocess, workers, self.allow_damaged)) as answers:
                for place, answer in answers:
                    if isinstance(answer, VideoError):
                        self.rows.fail(todo[place], str(answer))
                    else:
                        self.rows.write(todo[place], answer)
                    if progress:
                        progress(done + place + 1, len(self))

    @property
    def size(self) -> int:
        """Side of a frame in pixels."""
        return self.preprocess.size

    @property
    def failures(self) -> dict[int, str]:
        """What is wrong with each clip that could not be read, by its index."""
        return self.rows.failures

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        return self.batch([i])[0]

    def batch(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Copy rows [B, F, S, S, 3]. Raises VideoError for a failed one, InputError for an empty one, IndexError."""
        wanted = _indices(indices, len(self))
        for i in wanted[~self.rows.filled(wanted)]:
            self._refuse(int(i))
        return self.rows.read(wanted)

    def _refuse(self, i: int) -> NoReturn:
        if i in self.failures:
            raise VideoError(self.failures[i])
        raise InputError(f"{self.clips[i]}: found no frames in {self.rows.folder} yet; expected them; fill it first")


@dataclass(frozen=True, eq=False)
class FrameFiles:
    """Frames decoded at each access, in this process. A clip that failed is not tried again."""

    clips: Sequence[Clip]
    frames: int
    preprocess: Preprocess
    allow_damaged: bool = False
    failures: dict[int, str] = field(default_factory=dict, init=False)

    @property
    def size(self) -> int:
        """Side of a frame in pixels."""
        return self.preprocess.size

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        (i,) = _indices([i], len(self)).tolist()
        if i in self.failures:
            raise VideoError(self.failures[i])
        frames = _read(self.clips[i], self.frames, self.preprocess, self.allow_damaged)
        if isinstance(frames, VideoError):
            self.failures[i] = str(frames)
            raise frames
        return frames

    def batch(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """Decode [B, F, S, S, 3] one after the other. Raises VideoError for the first that fails; IndexError."""
        rows = _indices(indices, len(self)).tolist()
        found = np.empty((len(rows), self.frames, self.size, self.size, 3), np.uint8)
        for place, i in enumerate(rows):
            found[place] = self[i]
        return found


def _indices(indices: Sequence[int] | NDArray[np.integer[Any]], n: int) -> NDArray[np.int64]:
    rows = np.asarray(indices, np.int64)
    if rows.size and not 0 <= rows.min() <= rows.max() < n:
        raise IndexError(f"clips {rows.min()} to {rows.max()} of {n}")
    return rows


def _read(clip: Clip, frames: int, preprocess: Preprocess, allow_damaged: bool) -> NDArray[np.uint8] | VideoError:
    try:
        pictures = read_frames(clip.path, frames, clip.start, clip.end, allow_damaged)
        return preprocess.crop(clip.change(pictures) if isinstance(clip, ChangedClip) else pictures)
    except VideoError as error:
        return error
    except InputError as error:
        return VideoError(f"{clip.path}: {error}")


def _complaint(clip: Clip) -> str | None:
    try:
        check_video(clip.path)
    except VideoError as error:
        return str(error)
    return None


def _each(
    job: Callable[[Clip], _Answer], clips: Sequence[Clip], workers: int
) -> Generator[tuple[int, _Answer], None, None]:
    """Answers of a job in the order of the clips. What the job raises is raised here."""
    if workers < 0:
        raise InputError(f"found {workers} worker processes; expected 0, for none, or more; ask for another number")
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
                f"found the process that was reading this video killed by {signal.Signals(-code).name}; expected "
                "frames; use fewer workers if memory ran out; if it stays so, re-encode this video or leave it out"
            )
        return (
            f"found the process that was reading this video ended with exit code {code}; expected frames; a script "
            "that starts worker processes needs `if __name__ == '__main__':` around what it does, or 0 workers"
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
