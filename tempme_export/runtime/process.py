"""Resources of one process: opened there once, and again in every other process that gets their owner."""

import ctypes
import os
import threading
import weakref
from typing import Any, Self

from tempme_export.errors import BackendError

_owners: "weakref.WeakSet[ProcessBound]" = weakref.WeakSet()
_started: set[str] = set()  # what this process has used of `ProcessBound.not_after_fork`
_lost: set[str] = set()  # what a process had used that this one was forked from


class _Calls:
    """Calls into libraries. A fork waits until none is under way: in the child nobody would end it, and what it holds
    inside the library, such as a lock, would be held for ever.

    A thread that needs a lock as well enters its call first. In the other order it could hold the lock while it waits
    for a fork, and the fork would wait for a call that needs the lock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way, self._forks = 0, 0
        self._mine = threading.local()

    def _depth(self) -> int:
        return getattr(self._mine, "depth", 0)

    def __enter__(self) -> None:
        with self._changed:
            if not self._depth():
                self._changed.wait_for(lambda: not self._forks)
                self._under_way += 1
        self._mine.depth = self._depth() + 1

    def __exit__(self, *raised: object) -> None:
        self._mine.depth = self._depth() - 1
        if not self._depth():
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def wait(self) -> None:
        """Before a fork: until no other thread is in a call; none begins one until `go_on`."""
        with self._changed:
            self._forks += 1
            self._changed.wait_for(lambda: self._under_way == bool(self._depth()))

    def go_on(self) -> None:
        """After a fork, in the parent."""
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()


calls = _Calls()


class ProcessBound:
    """Holds what `_open` makes, such as a session with its threads, beside attributes that any process can hold.

    It is opened once, however many threads ask for it first. A copy, an unpickled one, a child after a fork, and the
    owner itself after `close` do not hold it, and open it at its next use.

    not_after_fork  the library that cannot be used in a child of a process that used it; None: any child may
    """

    not_after_fork: str | None = None
    _lock: threading.RLock
    _held: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Made here because a copy and an unpickled object never see `__init__`."""
        made = super().__new__(cls)
        made._lock, made._held = threading.RLock(), None
        _owners.add(made)
        return made

    def _open(self) -> Any:
        """Open the resource that only this process can hold."""
        raise NotImplementedError

    def opened(self) -> Any:
        """Resource that `_open` made here. Raises BackendError in a child that cannot use it, else as `_open`."""
        with calls, self._lock:
            if self._held is None:
                self._check_fork()
                self._held = self._open()
            return self._held

    def _check_fork(self) -> None:
        library = self.not_after_fork
        if library in _lost:
            raise BackendError(
                f"{library}: found a process forked from one that had used it, where it does not work, expected a "
                "fresh process. Start workers by multiprocessing.get_context('spawn'), or load and use the model in "
                "the children alone."
            )
        if library is not None:
            _started.add(library)

    def close(self) -> None:
        """Free what this process holds."""
        with calls, self._lock:
            self._held = None

    def _leave_behind(self) -> None:
        """In a child: what was inherited waits, when it is destroyed, for threads that a fork does not copy. So it is
        never destroyed: the interpreter empties its modules at exit, and only a reference that nobody owns lasts."""
        if self._held is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._held))
        self._lock, self._held = threading.RLock(), None

    def __getstate__(self) -> dict[str, Any]:
        """All but what this process alone can hold."""
        return {key: value for key, value in vars(self).items() if key not in ("_lock", "_held")}


def _in_child() -> None:
    calls.__init__()  # type: ignore[misc]
    _lost.update(_started)
    for owner in list(_owners):
        owner._leave_behind()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=calls.wait, after_in_parent=calls.go_on, after_in_child=_in_child)
