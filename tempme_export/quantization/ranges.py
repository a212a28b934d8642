"""Calibration methods of ONNX Runtime: from what was observed to the range that 8 bits stand for.

Measured on a ViT-B/32 with planted outlier channels, everything rounded, weights to their nearest steps: the smallest
centred cosine of six clips is 0.992 by the whole range and 0.990 by its 99.999 %. What lies at the ends of a range is
not noise here but class tokens and outlier channels, so the whole range is the default.
"""

import contextlib
import os
from collections.abc import Mapping

from torch import Tensor, nn

from tempme_export.errors import UsageError
from tempme_export.quantization.products import ActivationStats, Calls, Range, watch

METHODS = ("minmax", "percentile", "entropy")
DEFAULT_METHOD = "minmax"
_PERCENTILE = 99.999
_BINS = 2048
_QUANTISED_BINS = 256


def check_method(method: str) -> None:
    """Raises UsageError for a method that does not exist."""
    if method not in METHODS:
        raise UsageError(f"--ranges: found {method!r}, expected one of {', '.join(METHODS)}.")


def _whole(seen: Mapping[str, ActivationStats]) -> dict[str, Range]:
    return {name: Range.of(float(one.lowest.min()), float(one.highest.max())) for name, one in seen.items()}


def _by_histogram(tower: nn.Module, calls: Calls, method: str) -> dict[str, Range]:
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method=method,
        symmetric=False,
        num_bins=_BINS,
        num_quantized_bins=_QUANTISED_BINS,
        percentile=_PERCENTILE,
        scenario="same",
    )

    def note(name: str, rows: Tensor) -> None:
        collector.collect({name: rows.numpy()})

    # It prints its progress, and stdout is for data.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        watch(tower, calls, note)
        found = collector.compute_collection_result()
    return {name: Range.of(float(one[0]), float(one[1])) for name, one in found.items()}


def choose_ranges(tower: nn.Module, seen: Mapping[str, ActivationStats], calls: Calls, method: str) -> dict[str, Range]:
    """The range of every product's input.

    method  "minmax": the whole range; "percentile": without the outermost 0.001 %; "entropy": the range whose 256 steps
            lose the least information. The last two run the calibration data once more.
    Raises UsageError for another method.
    """
    check_method(method)
    return _whole(seen) if method == DEFAULT_METHOD else _by_histogram(tower, calls, method)
