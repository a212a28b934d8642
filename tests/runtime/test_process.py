"""Calls that are under way hold a fork up, and nothing else does."""

import threading

import pytest

from tempme_export.runtime.process import _Calls

LONG = 60  # seconds, for what must happen


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_fork_waits_for_a_call_and_calls_wait_for_the_fork():
    calls = _Calls()
    began, may_end, waited, may_fork, called = (threading.Event() for _ in range(5))

    def first():
        with calls, calls:  # a call inside a call is one
            began.set()
            may_end.wait(LONG)

    def fork():
        calls.wait()
        waited.set()
        may_fork.wait(LONG)
        calls.go_on()

    def second():
        with calls:
            called.set()

    in_thread(first)
    assert began.wait(LONG)
    in_thread(fork)
    assert not waited.wait(0.1)
    may_end.set()
    assert waited.wait(LONG)
    in_thread(second)
    assert not called.wait(0.1)
    may_fork.set()
    assert called.wait(LONG)


def test_a_thread_may_fork_in_its_own_call():
    calls = _Calls()
    with calls:
        calls.wait()
        calls.go_on()
    calls.wait()
    calls.go_on()


def test_a_call_that_fails_is_over():
    calls = _Calls()
    with pytest.raises(ValueError), calls:
        raise ValueError
    calls.wait()
    calls.go_on()
