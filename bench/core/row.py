"""Row: one candidate at one batch size, from measurement to terminal, Parquet, JSON and page."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeGuard

SCHEMA_VERSION = 3
EARLIER = 2
"""The schema that is read beside it."""

_RENAMED = {
    "contender": "candidate",
    "stable": "steady",
    "handicap_percent": "slowdown_percent",
    "knees": "saturations",
}
"""Columns of the earlier schema."""

HALF_WIDTH = 0.05
"""At most so much of a ratio is half of its interval once it has converged."""


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """A row, or another entry of a document, of the earlier schema under today's names."""
    found = {_RENAMED.get(name, name): value for name, value in values.items()}
    ratio, low, high = (found.get(name) for name in ("ratio", "ratio_low", "ratio_high"))
    if is_number(ratio) and is_number(low) and is_number(high):
        half_width = (high - low) / (2 * ratio)  # also of other processes, which is the wider
        found |= {"half_width": half_width, "converged": half_width <= HALF_WIDTH}
    return found


@dataclass(frozen=True)
class Row:
    """One candidate at one batch size; the columns of every table and file. None where a column does not apply, or
    where a file of an earlier version does not have it.

    candidate         what was timed beside others: a backend's name or a method's key
    weights           checkpoint the weights came from, or that they are random
    videos_per_s      batch over the median time of a call; frames_per_s likewise
    ratio             times as fast as the first candidate, the median over rounds, with the 95 % interval that
                      another run should agree with
    ratio_bf16        times as fast as the original path in bfloat16 autocast, the median over the rounds of both; None
                      where that was not measured beside it
    cov               standard deviation over mean of the samples
    converged         whether the ratio is known well enough: half_width is at most what the protocol asks for
    half_width        half of the ratio's interval within this run, as a share of the ratio
    steady            whether raw times were calm: the warm-up converged and the thirds of the measurement agree
    warmup            calls before the first sample that counts
    clock             of every time above: wall, copies to a device and back included, or device, by its events alone
    resident_ms       median time of a call whose videos already lie on the GPU; None on a CPU
    device_ms         the same between events of the device
    gmacs, gflops     per video: the paper's convention, and true floating-point operations
    final_clips       per video after the last block; final_tokens per clip
    load_mb           resident memory of this process that loading added, in 1e6 bytes
    encode_mb         the most that encoding added to that
    device_mb         the most that torch held on the GPU while encoding
    build_s           from weights to the artifact; None where the artifact was there or none is needed
    load_s            from weights or artifact to a runner that is ready
    one_minus_cosine  largest distance of an embedding from the original path's, on the inputs measured
    centred_loss      the same distance after the inputs' mean embedding is subtracted from both
    changed_decisions share of tokens that a merge sends elsewhere than the original path in float32 does
    tflop_s           on the method's own products, each multiply-accumulate counted twice, whatever a path does
    peak_tflop_s      of a large bfloat16 matrix product in the same rounds
    parity            whether that lies within the tolerance
    artifact_mb, artifact_sha256
                      of the file the backend runs; None where it runs from weights
    slowdown_percent  by how much it was slowed down on purpose, to test the harness itself
    time              when the measurement was done, ISO 8601 in UTC
    """

    candidate: str
    frames: int
    batch: int
    videos_per_s: float
    backend: str | None = None
    method: str | None = None
    profile: str | None = None
    weights: str | None = None
    precision: str | None = None
    device: str | None = None
    frames_per_s: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    ratio_bf16: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    mean_ms: float | None = None
    cov: float | None = None
    samples: int | None = None
    warmup: int | None = None
    converged: bool | None = None
    half_width: float | None = None
    steady: bool | None = None
    clock: str | None = None
    resident_ms: float | None = None
    device_ms: float | None = None
    gmacs: float | None = None
    gflops: float | None = None
    final_clips: int | None = None
    final_tokens: int | None = None
    load_mb: float | None = None
    encode_mb: float | None = None
    device_mb: float | None = None
    build_s: float | None = None
    load_s: float | None = None
    one_minus_cosine: float | None = None
    centred_loss: float | None = None
    changed_decisions: float | None = None
    tflop_s: float | None = None
    peak_tflop_s: float | None = None
    parity: bool | None = None
    artifact_mb: float | None = None
    artifact_sha256: str | None = None
    slowdown_percent: float | None = None
    cpu: str | None = None
    threads: int | None = None
    load_average: float | None = None
    gpu: str | None = None
    driver: str | None = None
    python: str | None = None
    torch: str | None = None
    onnxruntime: str | None = None
    openvino: str | None = None
    tensorrt: str | None = None
    commit: str | None = None
    time: str | None = None
    command: str | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """A row from plain values, unknown columns left out.

        Raises ValueError, in words, for a column of another kind and for one that is missing and needed.
        """
        needed = [one.name for one in dataclasses.fields(cls) if one.default is dataclasses.MISSING]
        for name in needed:
            if values.get(name) is None:
                raise ValueError(f"a row without `{name}`")
        known = {name: value for name, value in values.items() if name in KINDS}
        for name, value in known.items():
            if value is not None:
                _check(name, value)
        return cls(**known)

    def to_dict(self) -> dict[str, Any]:
        """The row as plain values."""
        return dataclasses.asdict(self)


def _kind(annotation: Any) -> type:
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not types.NoneType)
    return annotation


KINDS = {one.name: _kind(one.type) for one in dataclasses.fields(Row)}
"""Column -> str, int, float or bool; in the order of the files."""

_COLUMNS = tuple(KINDS)
VERSIONS = _COLUMNS[_COLUMNS.index("python") : _COLUMNS.index("commit")]
"""Columns of versions: of Python, and of the packages that candidates run on."""


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite number that is no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check(name: str, value: Any) -> None:
    """Raise ValueError for a value of another kind than its column's."""
    kind = KINDS[name]
    if kind is str and not isinstance(value, str):
        raise ValueError(f"`{name}` {value!r}, not a text, in a row")
    if kind is bool and not isinstance(value, bool):
        raise ValueError(f"`{name}` {value!r}, neither true nor false, in a row")
    if kind in (int, float) and not is_number(value):
        raise ValueError(f"`{name}` {value!r}, not a finite number, in a row")
