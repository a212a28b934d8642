"""Calls that are under way hold a fork up, and nothing else does."""

import os
import threading

import pytest

from tempme_export.runtime.process import ProcessBound, _Calls, calls

LONG = 60  # seconds, for what must happen


class Owner(ProcessBound):
    openings = 0

    def _open(self):
        self.openings += 1
        return object()


def in_thread(work):
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_fork_waits_for_a_call_and_calls_wait_for_the_fork():
    gate = _Calls()
    began, may_end, waited, may_fork, called = (threading.Event() for _ in range(5))

    def first():
        with gate, gate:  # a call inside a call is one
            began.set()
            may_end.wait(LONG)

    def fork():
        gate.wait()
        waited.set()
        may_fork.wait(LONG)
        gate.go_on()

    def second():
        with gate:
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
    gate = _Calls()
    with gate:
        gate.wait()
        gate.go_on()
    gate.wait()
    gate.go_on()


def test_a_call_that_fails_is_over():
    gate = _Calls()
    with pytest.raises(ValueError), gate:
        raise ValueError
    gate.wait()
    gate.go_on()


def test_a_fork_waits_for_no_lock():
    """A call that is under way needs what another thread is about to open, while a fork waits for the call."""
    owner, began, go = Owner(), threading.Event(), threading.Event()

    def call():
        with calls:
            began.set()
            go.wait(LONG)
            owner.opened()

    def fork():
        calls.wait()
        calls.go_on()

    inside = in_thread(call)
    assert began.wait(LONG)
    others = [in_thread(fork), in_thread(owner.opened)]
    others[1].join(0.1)
    go.set()
    for thread in (inside, *others):
        thread.join(LONG)
        assert not thread.is_alive()
    assert owner.openings == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_system_s_own_fork_waits_and_calls_go_on_after_it(run_python):
    printed = run_python(
        """
        import os, threading
        from tempme_export.runtime.process import calls

        began, ended = threading.Event(), threading.Event()

        def call():
            with calls:
                began.set()
                may_end.wait()
                ended.set()

        may_end = threading.Event()
        threading.Thread(target=call, daemon=True).start()
        began.wait()
        threading.Timer(0.2, may_end.set).start()
        child = os.fork()
        if not child:
            os._exit(0 if ended.is_set() else 1)
        print("waited" if os.waitpid(child, 0)[1] == 0 else "forked in the middle of a call")
        with calls:
            print("goes on")
        """
    )
    assert printed.split("\n")[:2] == ["waited", "goes on"]
