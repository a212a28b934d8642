"""The error tree. Every message says what was found, what was expected and what to do.

A command catches the root only and exits with the class's `exit_code`; anything else is a
bug and keeps its traceback (exit 1).
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What making a bundle takes and using one does not: the extra `export`.
MAKING = frozenset(("torch", "onnx", "onnxscript", "open_clip", "safetensors"))


class TempMeExportError(Exception):
    """Root of everything a user can cause and mend."""

    exit_code = 1


class UsageError(TempMeExportError):
    """The command line contradicts itself or asks for what does not exist."""

    exit_code = 2


class InputError(TempMeExportError, ValueError):
    """Something handed in is not what it should be."""

    exit_code = 3


class ProfileError(InputError):
    """A profile is missing, malformed, ambiguous or contradicts itself or the checkpoint."""


class CheckpointError(InputError):
    """A checkpoint cannot be read or is not the model that was expected."""


class VideoError(InputError):
    """A video cannot be read."""


class BundleError(InputError):
    """A bundle is missing, incomplete, changed or in the way."""


class ReleaseError(BundleError):
    """A bundle was replaced by another release, moved or removed after it was opened."""


class BackendError(TempMeExportError):
    """A runtime, an optional package or a device is missing."""

    exit_code = 4


class PrecisionError(BackendError):
    """A runtime is there, and has no kernels for the number format of a graph."""


class ParityError(TempMeExportError):
    """An artifact does not compute what the reference computes."""

    exit_code = 5


class ExportError(TempMeExportError):
    """An artifact could not be built or written."""

    exit_code = 6


class UnstableError(TempMeExportError):
    """A measurement did not converge and `--strict` was given."""

    exit_code = 7


class LeftBehindWarning(UserWarning):
    """Something of no more use could not be deleted."""


@contextmanager
def making(what: str) -> Iterator[None]:
    """The door from using bundles to making them. Raises BackendError where what lies behind it is not installed.

    what  that needs it, as the message begins
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in MAKING:
            raise
        raise BackendError(
            f"{what} needs {error.name}, which is not installed. Run: pip install 'tempme-export[export]'"
        ) from error


def sentence(text: str) -> str:
    """A text within a message, with its full stop."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: a sentence after a space, or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.65)
    return f" Did you mean {near[0]}?" if near else ""
