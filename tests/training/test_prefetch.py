"""The thread that makes items ahead."""

import threading
import time
from contextlib import closing

import pytest

from tempme_export.errors import InputError
from tempme_export.training.prefetch import prefetch


def test_the_same_items_in_order():
    assert list(prefetch(iter(range(50)))) == list(range(50))
    assert list(prefetch(iter(()))) == []


def test_it_reads_ahead_and_not_further():
    made = []

    def items():
        for i in range(20):
            made.append(i)
            yield i

    with closing(prefetch(items(), ahead=2)) as ready:
        assert next(ready) == 0
        deadline = time.monotonic() + 10
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3], "one taken, two ready, one in hand"


def test_its_errors_are_raised_where_items_are_asked_for():
    def items():
        yield 1
        raise InputError("no more")

    ready = prefetch(items())
    assert next(ready) == 1
    with pytest.raises(InputError, match="no more"):
        next(ready)


def test_closing_stops_the_thread_and_closes_the_items():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    before = threading.active_count()
    with closing(prefetch(items())) as ready:
        next(ready)
    assert closed.is_set() and threading.active_count() == before
