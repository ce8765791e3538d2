"""Files on the local disk: whole or not there, and their errors in our words."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from secrets import token_hex

from job.contract.errors import ConfigError, JobError, LocalIOError, NoInputError, PermissionDenied

_UNFINISHED = re.compile(r"^\.[0-9a-f]{16}\.part$")

_KINDS: dict[int, tuple[type[JobError], str]] = {
    errno.ENOENT: (NoInputError, "Check the path."),
    errno.ENOTDIR: (NoInputError, "Check the path: a file stands where a directory is expected."),
    errno.EISDIR: (NoInputError, "Check the path: a directory stands where a file is expected."),
    errno.EACCES: (PermissionDenied, "Give this user the right to read and write there."),
    errno.EPERM: (PermissionDenied, "Give this user the right to read and write there."),
    errno.EROFS: (PermissionDenied, "Mount the file system writable, or choose another directory."),
    errno.ENAMETOOLONG: (ConfigError, "Choose a shorter path."),
    errno.ENOTSUP: (ConfigError, "Use a file system that has hard links and locks, or an S3 bucket."),
    errno.ENOSPC: (LocalIOError, "Free space, or give the run a larger disk."),
    errno.EDQUOT: (LocalIOError, "Free space, or ask for a larger quota."),
}


@contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` about `path` into the `JobError` kind that it means; one that the table lacks is `LocalIOError`."""
    try:
        yield
    except OSError as error:
        kind, resolution = _KINDS.get(error.errno or 0, (LocalIOError, "Check the disk."))
        raise kind(f"{path}: {error.strerror or error}", resolution) from error


@contextmanager
def unfinished_file(path: Path) -> Iterator[BufferedRandom]:
    """A file under a hidden name beside `path`, removed at the block's end. Directories are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{token_hex(8)}.part")
    try:
        with unfinished.open("x+b") as file:
            yield file
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedRandom]:
    """A file that gets its name only when the block has ended well and its bytes are on the disk."""
    with unfinished_file(path) as file:
        yield file
        flush(file)
        Path(file.name).replace(path)
    flush_directory(path.parent)


def is_unfinished(name: str) -> bool:
    """Whether a file's name is that of one that was never finished."""
    return bool(_UNFINISHED.match(name))


def flush(file: BufferedRandom) -> None:
    """Bring a file's bytes to the disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_directory(directory: Path) -> None:
    """Bring a directory's names to the disk, so that a rename outlives a crash."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
