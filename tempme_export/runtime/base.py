"""The contract of every backend."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tempme_export.errors import InputError

Arrays = dict[str, NDArray[np.generic]]


class Runner(ABC):
    """Runs one tower: named numpy arrays in, named numpy arrays out. A context manager.

    `inputs` maps each input to its dtype and shape, None for the batch. A batch of more than `max_batch` rows is run
    in parts; None: at once, whatever its size.
    """

    name: str
    max_batch: int | None = None
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
                wanted = ", ".join("batch" if axis is None else str(axis) for axis in shape)
                raise InputError(
                    f"{self.name}: {name} is {array.dtype} {list(array.shape)}, expected {dtype} [{wanted}]."
                )
            batches.add(len(array))
        if len(batches) != 1 or 0 in batches:
            raise InputError(f"{self.name}: batch sizes are {sorted(batches)}, expected one size of at least 1.")
        (batch,) = batches
        step = self.max_batch or batch
        starts = range(0, batch, step)
        parts = [self._infer({name: array[at : at + step] for name, array in inputs.items()}) for at in starts]
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def close(self) -> None:  # noqa: B027 - most backends hold nothing
        """Free what the backend holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
