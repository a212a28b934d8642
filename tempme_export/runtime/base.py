"""The contract of every backend."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import InputError, UsageError
from tempme_export.runtime.process import ProcessBound, calls

Arrays = dict[str, NDArray[np.generic]]


def check_threads(threads: int | None) -> None:
    """Raises UsageError for anything but a whole number of at least 1, or None, which leaves it to the runtime."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UsageError(
            f"threads: found {threads!r}, expected a whole number of at least 1. Leave it out for the runtime's own."
        )


class Runner(ProcessBound, ABC):
    """Runs one tower: named numpy arrays in, named numpy arrays out. A context manager.

    It may be called from several threads at once: calls run side by side, or one after another where the runtime
    cannot do that. It can be pickled and copied: what arrives opens its file again at its first use, and so does a
    child after a fork, or refuses where its runtime cannot (BackendError).

    `inputs` maps each input to its dtype and shape, None for the batch. A batch of more than `max_batch` rows is run
    in parts; None: at once, whatever its size. `one_at_a_time` is set where the runtime cannot run two calls at once.
    """

    name: str
    max_batch: int | None = None
    one_at_a_time: bool = False
    inputs: Mapping[str, tuple[np.dtype[np.generic], tuple[int | None, ...]]]

    @abstractmethod
    def _infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays: ...

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        """Run a batch. Raises InputError when names, dtypes or shapes are not those of `self.inputs`."""
        if inputs.keys() != self.inputs.keys():
            raise InputError(
                f"{self.name}: found inputs {', '.join(sorted(inputs)) or 'none'}, "
                f"expected {', '.join(sorted(self.inputs))}."
            )
        batches = set()
        for name, (dtype, shape) in self.inputs.items():
            array = inputs[name]
            fits = array.ndim == len(shape) and all(e in (None, n) for e, n in zip(shape, array.shape, strict=True))
            if array.dtype != dtype or not fits:
                expected = ", ".join("batch" if axis is None else str(axis) for axis in shape)
                raise InputError(
                    f"{self.name}: {name} is {array.dtype} {list(array.shape)}, expected {dtype} [{expected}]."
                )
            batches.add(len(array))
        if len(batches) != 1 or 0 in batches:
            raise InputError(f"{self.name}: batch sizes are {sorted(batches)}, expected one size of at least 1.")
        (batch,) = batches
        step = self.max_batch or batch
        starts = range(0, batch, step)
        parts = []
        for at in starts:
            with calls, self._lock if self.one_at_a_time else nullcontext():
                parts.append(self._infer({name: array[at : at + step] for name, array in inputs.items()}))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def resident(self, inputs: Mapping[str, NDArray[np.generic]]) -> Callable[[], object] | None:
        """A call that runs a batch which lies on the runner's GPU already, and may return before its work is done.

        The batch is copied there now, at most `max_batch` rows. None on a processor, and where the runtime copies each
        batch by itself.
        """
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
