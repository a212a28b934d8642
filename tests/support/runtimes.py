"""Runtimes and artifacts that are registered for one test, and what a runner is asked and answers."""

import dataclasses
from contextlib import ExitStack

import pytest

from tempme_export.artifacts import registry
from tempme_export.runtime.base import Runner


class Answering(Runner):
    """A runner whose answers are changed on their way out."""

    def __init__(self, real, seen, answer):
        self.real, self.seen, self.answer = real, seen, answer
        self.name, self.inputs, self.max_batch = real.name, real.inputs, real.max_batch

    def _infer(self, inputs):
        self.seen.append(inputs)
        return self.answer(self.real.infer(inputs))

    def close(self):
        self.real.close()


class Running:
    """A runtime as the real one, but for what happens before a runner is opened and what it answers.

    opened  names of the files that were opened
    seen    inputs of every run
    """

    def __init__(self, backend, before=lambda opened: None, answer=lambda found: found):
        self.real, self.before, self.answer, self.opened = backend.runtime, before, answer, []
        self.seen = []

    def __getattr__(self, name):
        return getattr(self.real, name)

    def open_runner(self, path, facts, setting):
        self.opened.append(path.name)
        self.before(self.opened)
        return Answering(self.real.open_runner(path, facts, setting), self.seen, self.answer)


@pytest.fixture
def registering():
    """`registering(*entries)`: artifacts and backends that are registered until the test ends."""
    with ExitStack() as stack:
        yield lambda *entries: stack.enter_context(registry.registered(*entries))


@pytest.fixture
def runs(registering):
    """`runs(name, before=, answer=)`: a backend is run by a Running until the test ends, which is returned."""

    def run(name, **changes):
        (backend,) = (one for one in registry.BACKENDS if one.name == name)
        runtime = Running(backend, **changes)
        registering(dataclasses.replace(backend, runner=runtime))
        return runtime

    return run
