"""Progress, log and parser errors of a build, as TensorRT calls them."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tempme_export.exporters.trt.reports import (
    BuildStep,
    Complaints,
    Failure,
    Phases,
    make_logger,
    make_monitor,
    parser_errors,
)
from tempme_export.progress import LogLine


class Base:
    """Stands in for IProgressMonitor and ILogger, whose own initialiser a subclass must call."""

    def __init__(self):
        self.initialised = True


TRT = SimpleNamespace(IProgressMonitor=Base, ILogger=Base)


class TestPhases:
    def test_steps_of_inner_phases_are_parts_of_the_outer_step(self):
        phases = Phases()
        assert phases.start("engine", None, 4) == BuildStep("engine", 0.0)
        assert phases.complete("engine", 0).fraction == 0.25
        phases.start("tactics", "engine", 2)
        assert phases.complete("tactics", 0) == BuildStep("tactics", 0.25 + 0.125)
        phases.start("timing", "tactics", 10)
        assert phases.complete("timing", 4).fraction == pytest.approx((1 + (1 + 0.5) / 2) / 4)
        assert phases.finish("timing").fraction == pytest.approx((1 + 0.75) / 4)
        phases.finish("tactics")
        assert phases.complete("engine", 3).fraction == 1.0
        assert phases.finish("engine") == BuildStep("engine", 1.0)

    def test_an_early_end_is_an_end(self):
        phases = Phases()
        phases.start("engine", None, 4)
        assert phases.finish("engine").fraction == 1.0

    def test_names_that_never_began(self):
        phases = Phases()
        assert phases.complete("a", 3) == BuildStep("a", 0.0)
        assert phases.finish("b") == BuildStep("b", 0.0)

    @settings(deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["start", "complete", "finish"]), st.integers(0, 3), st.integers(0, 5)),
            max_size=60,
        )
    )
    def test_it_never_falls_and_stays_between_0_and_1(self, calls):
        """Phases may be reused, end early and overlap: nothing a builder reports may turn the bar back."""
        phases, last = Phases(), 0.0
        for what, depth, number in calls:
            name, parent = f"phase {depth}", f"phase {depth - 1}" if depth else None
            step = {
                "start": lambda n=name, p=parent, k=number: phases.start(n, p, k),
                "complete": lambda n=name, k=number: phases.complete(n, k),
                "finish": lambda n=name: phases.finish(n),
            }[what]()
            assert last <= step.fraction <= 1.0
            last = step.fraction


class TestMonitor:
    def test_what_is_passed_on(self, recording):
        phases = []
        told = recording(on_step=lambda step: phases.append(step.now))
        with told.step("building", 100, "%") as step:
            monitor = make_monitor(TRT, step, Failure())
            assert monitor.initialised
            monitor.phase_start("engine", None, 2)
            assert monitor.step_complete("engine", 0) is True
            monitor.phase_finish("engine")
        assert told.amounts("building") == [(done, 100) for done in (0, 0, 50, 100)]
        assert phases == ["", *["engine"] * 3]

    @pytest.mark.parametrize("error", [ValueError("full disk"), KeyboardInterrupt()])
    def test_an_exception_stops_the_build_and_is_raised_afterwards(self, error, recording):
        def stop(step):
            if step.now:
                raise error

        told, failure = recording(on_step=stop), Failure()
        with told.step("building", 100, "%") as step:
            monitor = make_monitor(TRT, step, failure)
            failure.raise_again()
            assert monitor.phase_start("engine", None, 2) is None
            assert monitor.step_complete("engine", 0) is False
            monitor.phase_finish("engine")
        assert len(told.counts) == 2, "nothing is called after the first failure"
        with pytest.raises(type(error)):
            failure.raise_again()


class TestLog:
    @pytest.fixture
    def log(self, recording):
        def make(verbose):
            told, complaints = recording(), Complaints()
            logger = make_logger(TRT, complaints, told, verbose, Failure())
            assert logger.initialised
            return logger, complaints, told.facts

        return make

    def test_verbose_lines(self, log):
        logger, _, seen = log(verbose=True)
        logger.log("Severity.INFO", "Detected 1 inputs")
        assert seen == [LogLine("TensorRT", "info: Detected 1 inputs")]

    def test_errors_before_warnings(self, log):
        logger, complaints, seen = log(verbose=False)
        assert "It said nothing" in complaints.text()
        logger.log("Severity.VERBOSE", "a tactic")
        logger.log("Severity.WARNING", "careful")
        assert complaints.text() == "\n  careful"
        logger.log("Severity.ERROR", "out of memory")
        logger.log("Severity.INTERNAL_ERROR", "assertion")
        assert complaints.text() == "\n  out of memory\n  assertion"
        assert seen == []

    def test_the_last_ones_are_kept(self, log):
        logger, complaints, _ = log(verbose=False)
        for k in range(100):
            logger.log("Severity.ERROR", f"error {k}")
        assert complaints.text().startswith("\n  error 88\n") and complaints.text().endswith("\n  error 99")


def parser(*errors):
    return SimpleNamespace(num_errors=len(errors), get_error=lambda index: errors[index])


def error(node, operator, name, functions, text):
    return SimpleNamespace(
        node=lambda: node,
        node_operator=lambda: operator,
        node_name=lambda: name,
        local_function_stack=lambda: functions,
        desc=lambda: text,
    )


def test_every_parser_error_names_its_node():
    found = parser_errors(
        parser(
            error(3, "Bogus", "node_add", [], "no importer"),
            error(32, "Rubbish", "", ["node_5 (MatchKeys)", "inner"], "no importer either"),
            error(-1, None, None, None, "cannot open the file"),
        )
    )
    assert found == [
        "node 3, Bogus 'node_add': no importer",
        "node 32, Rubbish '?' in function inner in node_5 (MatchKeys): no importer either",
        "node -1, ? '?': cannot open the file",
    ]
    assert parser_errors(parser()) == []
