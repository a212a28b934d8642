"""Files and folders that are whole or not there, and fingerprints of files.

What is being written lies beside its place under a hidden name, `.NAME.*.partial`, and takes its name at the end.
"""

import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tempme_export.errors import ExportError, LeftBehindWarning

Content = bytes | Callable[[BinaryIO], object]
Rename = Callable[[Path, Path, int], bool]  # whether the system and the file system have it

_UNFINISHED: set[Path] = set()
_NAME_KEPT = 40  # characters of a name in its hidden sibling's, which must not be too long for the file system
_NO_REPLACE, _EXCHANGE = 1, 2  # flags of renameat2(2)
_HERE = -100  # AT_FDCWD
_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # what a file system without such renames answers


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_file(path: Path, content: Content) -> None:
    """Write a hidden sibling of `path`, bring it to the disk, and rename it: `path` is the old file or the new one.

    content  the bytes, or what writes them to the stream it is given
    A link stays one, and its target is replaced; a device or a pipe is written to. Raises ExportError when it cannot
    be written.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            with path.open("wb") as stream:
                _fill(stream, content)
            return
        place = path.resolve()
        with _unfinished(place) as unfinished:
            with unfinished.open("xb") as stream:
                _fill(stream, content)
                os.fsync(stream.fileno())
            unfinished.replace(place)
            _sync_folder(place.parent)
    except (OSError, RuntimeError) as error:  # torch.save turns some failed writes into a RuntimeError
        where = next(folder for folder in path.absolute().parents if folder.exists())
        free = shutil.disk_usage(where).free
        kept = f"; {path.name} of before is intact" if path.is_file() else ""
        raise ExportError(
            f"{path} could not be written ({_reason(error)}); {free / 1e6:.0f} MB are free there{kept}. "
            "Make room or choose another folder."
        ) from error


@contextmanager
def building(out: Path) -> Iterator[Path]:
    """A hidden sibling of `out`, a folder to build in. It is gone afterwards unless `publish` gave it its name.

    Raises ExportError where the file system refuses (full, read-only).
    """
    try:
        with _unfinished(out.absolute()) as work:
            work.mkdir(parents=True)
            yield work
    except OSError as error:
        raise ExportError(f"{out} could not be written: {error}. Nothing was left behind.") from error


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A folder for passing things where the system keeps those, gone afterwards.

    Raises ExportError where there is no place for it.
    """
    name_temporary_folder()
    with _unfinished(Path(tempfile.gettempdir()) / name) as work:
        try:
            work.mkdir(mode=0o700)
        except OSError as error:
            raise ExportError(
                f"found no folder for temporary files that can be written to ({error}). Name one in the environment "
                "variable TMPDIR."
            ) from error
        yield work


def name_temporary_folder() -> None:
    """Name a folder for temporary files where none can be written to: libraries ask for it while they are imported, and
    most never write there."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = os.path.abspath(os.sep)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.tempdir)  # torch makes its own, unless it is there


def publish(work: Path, out: Path, *, replace: bool, system: Rename | None = None) -> None:
    """Give a folder that `building` made its final name, in one step that respects what has that name at that moment.

    replace  what is there is exchanged for it; `building` then deletes that
    system   the one rename that knows `RENAME_NOREPLACE` and `RENAME_EXCHANGE`; None: renameat2(2)
    Raises FileExistsError where something is there and `replace` is false.
    """
    system = system or _system_rename
    while True:
        try:
            _rename_new(work, out, system)
            return
        except FileExistsError:
            if not replace:
                raise
        with suppress(FileNotFoundError, FileExistsError):  # it has just gone, or another has just come
            _exchange(work, out, system)
            return


@contextmanager
def library_path(path: Path) -> Iterator[str]:
    """Within, a path to this file for libraries that know names in UTF-8 only.

    Where a name is none, which Linux allows, it is the file's or its folder's among the open files of this process.
    """
    path = path.absolute()
    if _is_utf8(path):
        yield str(path)
        return
    by_folder = _is_utf8(Path(path.name))
    descriptor = os.open(path.parent if by_folder else path, os.O_RDONLY)
    try:
        opened = f"/proc/{os.getpid()}/fd/{descriptor}"
        yield f"{opened}/{path.name}" if by_folder else opened
    finally:
        os.close(descriptor)


def discard_unfinished() -> None:
    """Delete everything that is being written: for a process that is about to end without unwinding."""
    for path in tuple(_UNFINISHED):
        _delete(path)


@contextmanager
def _unfinished(place: Path) -> Iterator[Path]:
    unfinished = _hidden_sibling(place)
    _UNFINISHED.add(unfinished)
    try:
        yield unfinished
    finally:
        try:
            _delete(unfinished)
        except BaseException:  # a signal
            _delete(unfinished)
            raise
        _UNFINISHED.discard(unfinished)
        if os.path.lexists(unfinished):
            warnings.warn(
                f"{unfinished} could not be deleted. It is of no more use; delete it by hand.",
                LeftBehindWarning,
                stacklevel=3,
            )


def _hidden_sibling(place: Path) -> Path:
    return place.with_name(f".{place.name[:_NAME_KEPT]}.{secrets.token_hex(4)}.partial")


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _fill(stream: BinaryIO, content: Content) -> None:
    if callable(content):
        content(stream)
    else:
        stream.write(content)
    stream.flush()


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _delete(path: Path) -> None:
    """Delete a file, a link or a folder, as far as the file system lets."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # the file has its name; some file systems have no such call
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _system_rename(source: Path, target: Path, flag: int) -> bool:
    """renameat2(2): whether the system and the file system have it. Raises OSError as a rename does."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if call is None:
        return False
    if call(_HERE, os.fsencode(source), _HERE, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(source), None, str(target))


def _rename_new(work: Path, out: Path, system: Rename) -> None:
    """Rename a folder to a name that nothing has. Raises FileExistsError."""
    if system(work, out, _NO_REPLACE):
        return
    if os.name != "posix":
        work.rename(out)
        return
    out.mkdir()  # takes the name, or fails; a folder can be renamed to an empty one
    try:
        work.rename(out)
    except BaseException as error:
        with suppress(OSError):
            out.rmdir()
        if isinstance(error, OSError) and error.errno == errno.ENOTEMPTY:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out)) from error
        raise


def _exchange(work: Path, out: Path, system: Rename) -> None:
    """Exchange two names. Raises FileNotFoundError where `out` is gone, FileExistsError where another comes between.

    Where the file system has no such rename, a reader may for a moment find nothing.
    """
    if system(work, out, _EXCHANGE):
        return
    aside = _hidden_sibling(out)
    out.rename(aside)
    try:
        _rename_new(work, out, system)
    except FileExistsError:
        _delete(aside)  # another has replaced it
        raise
    except BaseException:
        aside.rename(out)
        raise
    aside.rename(work)
