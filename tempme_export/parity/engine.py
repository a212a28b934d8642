"""The verdict on an engine: its embeddings at every batch it was built for, against the self-test."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tempme_export.media.preprocess import Preprocess
from tempme_export.parity.checks import Check, ParityReport, check_batches, inputs_for, unit_length
from tempme_export.parity.selftest import SelfTest
from tempme_export.parity.tolerance import TOLERANCES, Tolerance
from tempme_export.runtime.base import Runner
from tempme_export.runtime.engine_facts import EngineFacts
from tempme_export.runtime.tensorrt import TensorRtRunner

_RUNS_BEFORE = 2  # the first prepares a batch, the second records it, and a replay is judged


def engine_batches(facts: EngineFacts, selftest: SelfTest) -> tuple[int, ...]:
    """The smallest, usual and largest batch, and all of the self-test's clips together."""
    return tuple(sorted({*facts.batch, len(selftest.clips)}))


def engine_checks(
    selftest: SelfTest, preprocess: Preprocess, runner: Runner, batches: Sequence[int], tolerance: Tolerance
) -> list[Check]:
    """What an artifact can be judged by that returns embeddings alone: level (c), at every batch."""
    checks = check_batches(selftest, preprocess, runner, batches, tolerance, _RUNS_BEFORE)
    frames = np.stack([preprocess(clip) for clip in selftest.clips])
    return [*checks, unit_length("video", runner.infer(inputs_for(runner, frames))["video_embedding"])]


def judge_engine(
    path: Path, facts: EngineFacts, selftest: SelfTest, preprocess: Preprocess, device: str
) -> ParityReport:
    """Run an engine against the self-test by its precision's limits. Raises BackendError as `TensorRtRunner`."""
    tolerance, batches = TOLERANCES[facts.precision], engine_batches(facts, selftest)
    with TensorRtRunner(path, facts, device) as runner:
        checks = engine_checks(selftest, preprocess, runner, batches, tolerance)
    return ParityReport(path.name, f"TensorRT {facts.tensorrt}, {facts.gpu}", tuple(checks))
