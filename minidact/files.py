"""Writing files so that nothing is lost: whole or not at all, and no two processes at once."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .errors import InputError

try:
    import fcntl

    LOCKS = True
except ImportError:  # on Windows
    LOCKS = False


def make_directory(name: str | os.PathLike[str]) -> Path:
    """mkdir -p, with a clear sentence where that cannot be. Returns the directory."""
    if name == "":  # Path("") would be the directory that we are in
        raise InputError("'' cannot be made a directory: it is no name")
    try:
        path = Path(name)
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{name} cannot be made a directory: {error.strerror}") from None
    except (TypeError, ValueError) as error:  # no name at all, or one with a zero in it
        raise InputError(f"{name!r} cannot be made a directory: {error}") from None
    return path


def write_file(path: Path, data: bytes, rehearse: bool = False) -> None:
    """Writes a file whole, or not at all. rehearse: all but the last step, to see if it works."""
    with written(path, rehearse) as file:
        file.write(data)


@contextmanager
def written(path: Path, rehearse: bool = False) -> Iterator[BinaryIO]:
    """A file to write to, at the side. At the end it is flushed to the disk and moved into place.

    If the block fails, path stays as it was. A symbolic link is followed.
    """
    path = Path(os.path.realpath(path))
    aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(aside, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir():  # seen in a rehearsal, too
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if path.exists():  # who may read it stays as it was
            shutil.copymode(path, aside)
        if not rehearse:
            os.replace(aside, path)
    except OSError as error:
        raise InputError(f"{path} could not be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a file or directory as long as the block lasts; other processes wait for it.

    A file is made if it is not there. With wait=False, raises BlockingIOError if another process
    holds it. Where the file system has no locks, or the system none of this kind (Windows), the
    block runs without one.
    """
    if not LOCKS:
        yield
        return
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, flags, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Holds a directory as long as the block lasts; raises InputError if another process does."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory, wait=False))
        except BlockingIOError:
            raise InputError(
                f"another run is writing to {directory}; choose another --out"
            ) from None
        yield
