"""Items made in a thread, ahead of who asks for them."""

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
_POLL = 0.1  # seconds between looks whether anybody still wants the next item


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class _End:
    """No more items."""


def prefetch(items: Iterator[T], ahead: int = 2) -> Generator[T, None, None]:
    """The same items, made in a thread up to `ahead` before they are asked for; its errors are raised here.

    Closing it stops the thread and closes `items`.
    """
    ready: queue.Queue[T | _Raised | _End] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: T | _Raised | _End) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=_POLL)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    break
            put(_End())
        except BaseException as error:
            put(_Raised(error))
        finally:
            if isinstance(items, Generator):
                items.close()

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stopped.set()
        thread.join()
