"""torch as a host: whether a device is there, which machine code it runs, and keeping its remarks down."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tempme_export.errors import BackendError


def torch_device(device: str, cuda: Any = torch.cuda) -> torch.device:
    """`cpu`, `cuda` or `cuda:N`. Raises BackendError for a device this machine or torch does not have."""
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise BackendError(f"device {device!r} is not one torch knows. Use cpu, cuda or cuda:N.") from None
    if chosen.type == "cuda":
        count = cuda.device_count() if cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise BackendError(f"device {device} was asked for and torch sees {count} CUDA devices. Use --device cpu.")
    elif chosen.type != "cpu":
        raise BackendError(f"device {device!r} is not supported. Use cpu, cuda or cuda:N.")
    return chosen


def capability(device: torch.device) -> str:
    """Instructions or GPU generation that compiled code needs: `AVX2`, `AVX512` and so on, or `sm_90` of a GPU."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"
    return torch.backends.cpu.get_cpu_capability()


def after_fork() -> None:
    """Let a child forget the threads that torch had in its parent: without this it crashes when it exits."""
    torch.set_num_threads(1)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep the compiler's remarks off the terminal, such as that there is no GPU; its errors are exceptions."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
