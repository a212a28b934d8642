"""A listener that keeps what it hears."""

import pytest

from tempme_export.progress import Progress


class Recording(Progress):
    """Keeps what a work tells.

    facts    as they were told
    counts   (step's name, done, total) at the beginning of every step and whenever more of it is done
    ended    (step's name, whether it failed)
    on_fact  called with every fact, on_step with every step that begins or advances: what these raise ends the work
    """

    def __init__(self, on_fact=lambda fact: None, on_step=lambda step: None):
        self.facts, self.counts, self.ended = [], [], []
        self.on_fact, self.on_step = on_fact, on_step

    def begin(self, step):
        self.advance(step)

    def advance(self, step):
        self.counts.append((step.name, step.done, step.total))
        self.on_step(step)

    def end(self, step):
        self.ended.append((step.name, step.failed))

    def tell(self, fact):
        self.facts.append(fact)
        self.on_fact(fact)

    def of(self, kind):
        """The facts of one type."""
        return [fact for fact in self.facts if isinstance(fact, kind)]

    def amounts(self, name):
        """(done, total) of the steps of one name."""
        return [(done, total) for step, done, total in self.counts if step == name]

    @property
    def kinds(self):
        """Names of the facts' types."""
        return [type(fact).__name__ for fact in self.facts]


@pytest.fixture(scope="session")
def recording():
    """A listener that keeps what it hears."""
    return Recording
