"""SIGINT, SIGTERM and SIGHUP end a command cleanly: its work unwinds, and what it was writing is gone.

The signal is raised as an exception in the main thread. Where that does not come out of a library, or a second signal
comes, a thread of its own deletes what is unfinished and ends the process and its children at once.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from tempme_export.files import discard_unfinished

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_PATIENCE = 3.0  # seconds for a library to return after a signal that is often the last before a SIGKILL
_SHELL = 128  # a shell's exit code of a signal is its number beyond this


class Stopped(KeyboardInterrupt):
    """A signal asks the command to end."""


class Stop:
    """The signal that came, if any, and the end that it brings."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.is_open = True
        self._raised = threading.Event()

    @property
    def exit_code(self) -> int | None:
        """The code that says which signal came; None where none did."""
        return None if self.signum is None else _SHELL + self.signum

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The handler of every signal, in the main thread. Raises Stopped at the first."""
        self._raised.set()
        if self.signum is None and self.is_open:
            self.signum = signum
            raise Stopped

    def watch(self, numbers: socket.socket) -> None:
        """Receive the number of each signal as it comes, until the other end is closed."""
        first: int | None = None
        while True:
            try:
                received = numbers.recv(1)
            except TimeoutError:
                if not self._raised.is_set():
                    self.end(first or signal.SIGTERM)
                numbers.settimeout(None)
                continue
            if not received:
                return
            if received[0] not in _SIGNALS:
                continue
            if first is not None:
                self.end(first)
            first = received[0]
            # Whoever presses Ctrl-C can press it again, and a measurement is worth the call that is under way.
            numbers.settimeout(None if first == signal.SIGINT else _PATIENCE)

    def end(self, signum: int) -> None:
        """Leave nothing behind, and end this process at once."""
        for child in _descendants(os.getpid()):
            with suppress(OSError):
                os.kill(child, signal.SIGKILL)
        discard_unfinished()
        os._exit(_SHELL + signum)

    def unraisable(self, lost: Any) -> None:
        """Hook for exceptions that Python cannot raise: a signal that arrives there must not be lost."""
        if isinstance(lost.exc_value, Stopped) and self.signum is not None:
            self.end(self.signum)
        sys.__unraisablehook__(lost)

    def forget(self) -> None:
        """In a forked child: signals are what they are to every process, and none of the parent's affair."""
        if self.is_open:
            signal.set_wakeup_fd(-1)
            for one in _SIGNALS:
                if signal.getsignal(one) == self.handle:
                    signal.signal(one, signal.SIG_DFL)


@contextmanager
def stopping() -> Iterator[Stop]:
    """Within, a signal raises Stopped in the main thread. One that was ignored before, as nohup does, stays so."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {one: signal.getsignal(one) for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN}
    theirs, ours = socket.socketpair()
    ours.setblocking(False)
    watcher = threading.Thread(target=stop.watch, args=(theirs,), name="signals", daemon=True)
    watcher.start()
    hook, sys.unraisablehook = sys.unraisablehook, stop.unraisable
    wakeup = signal.set_wakeup_fd(ours.fileno(), warn_on_full_buffer=False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=stop.forget)
    for one in before:
        signal.signal(one, stop.handle)
    try:
        yield stop
    finally:
        stop.is_open = False
        for one, handler in before.items():
            signal.signal(one, handler)
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook = hook
        ours.close()
        watcher.join()
        theirs.close()


def _descendants(process: int) -> list[int]:
    """Children and theirs, where the system lists them: Linux does."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*"):
        with suppress(OSError):  # it has just ended
            found += map(int, (task / "children").read_text().split())
    return [*found, *(one for child in found for one in _descendants(child))]
