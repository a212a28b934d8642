"""Shared parts of the probes of runtimes: a report, a graph of one node, and an answer that is checked.

A probe runs in a process of its own, where it loads its runtime for real. Whatever it raises is the finding.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Report = dict[str, Any]

# An ONNX file of 63 bytes: y = x + x, float32 [2], opset 18.
DOUBLE = (
    b'\x08\x08:5\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x02B\x04\n\x00\x10\x12"
)
_GIVEN, _EXPECTED = (1.5, -2.5), [3.0, -5.0]


class ProbeError(RuntimeError):
    """A part is there and does not do what it is for."""


def report(version: object, *notes: str, **more: Any) -> Report:
    """A part that works: its version or None, its abilities in words, and further facts by name."""
    return {"version": None if version is None else str(version), "notes": list(notes), **more}


def version_of(module: Any) -> str | None:
    """The version that a module says of itself; None where it says none."""
    found = getattr(module, "__version__", None)
    return None if found is None else str(found)


def check_double(run: "Callable[[NDArray[np.float32]], Any]") -> None:
    """Raise ProbeError unless `run`, a runtime with DOUBLE, doubles two numbers."""
    import numpy as np

    found = [float(one) for one in run(np.array(_GIVEN, np.float32))]
    if found != _EXPECTED:
        raise ProbeError(f"computed {found} for 2 * {list(_GIVEN)}, expected {_EXPECTED}")
