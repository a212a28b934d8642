"""The contract between a long work and whoever listens to it."""

import pytest

from tempme_export.progress import SILENT


def test_a_step_from_beginning_to_end(recording):
    told = recording()
    with told.step("verifying", 3, "batches", done=1) as step:
        step.advance(2, "batch 8")
        assert (step.name, step.done, step.total, step.unit, step.now) == ("verifying", 2, 3, "batches", "batch 8")
        with told.step("tracing") as inner:
            assert inner.total is None
        step.advance(3)
        assert step.now == ""
    assert told.counts == [("verifying", 1, 3), ("verifying", 2, 3), ("tracing", 0, None), ("verifying", 3, 3)]
    assert told.ended == [("tracing", False), ("verifying", False)]


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt()])
def test_a_step_that_fails_ends_too(recording, error):
    told = recording()
    with pytest.raises(type(error)), told.step("verifying"):
        raise error
    assert told.ended == [("verifying", True)]


def test_what_a_listener_raises_ends_the_work(recording):
    def refuse(step):
        if step.done == 2:
            raise ValueError("enough")

    told, reached = recording(on_step=refuse), []
    with pytest.raises(ValueError, match="enough"), told.step("counting", 3) as step:
        for done in (1, 2, 3):
            step.advance(done)
            reached.append(done)
    assert reached == [1] and told.ended == [("counting", True)]


def test_nobody_need_listen():
    with SILENT.step("verifying", 2) as step:
        step.advance(1)
    SILENT.tell(object())
