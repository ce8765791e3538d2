"""Fetches one file of a run, and goes on where an earlier fetch was cut."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from job.contract.documents import Artifact
from job.contract.errors import DataError, NoInputError
from job.contract.model import sha256_hex
from job.storage import Progress, Stat, Storage
from job.storage.in_order import in_order
from job.storage.local_files import flush, flush_directory, local_errors

_PIECE_BYTES, _PIECES_AT_A_TIME = 8 << 20, 16


def part_of(path: Path, artifact: Artifact) -> Path:
    """Where the beginning of a file lies until all of it is there: the name says of which content it is."""
    return path.with_name(f".{sha256_hex(f'{path.name} {artifact.sha256}'.encode())[:16]}.part")


def fetch(storage: Storage, artifact: Artifact, path: Path, progress: Progress) -> int:
    """Sees to it that a file is there, with its name once its SHA-256 is the artifact's.

    What is there already, the file or its beginning, is not fetched again.

    Args:
        storage: the root of runs.
        artifact: what it is to be.
        path: where it goes.
        progress: is told of the bytes that move.

    Returns:
        Of its bytes, how many had to be moved.

    Raises:
        NoInputError: the object has gone.
        DataError: it is not what the result says.
    """
    part = part_of(path, artifact)
    with local_errors(path):
        if path.is_file() and path.stat().st_size == artifact.size and _sha256_of(path) == artifact.sha256:
            part.unlink(missing_ok=True)
            return 0
    stat = storage.head(artifact.key)
    if stat is None:
        raise NoInputError(f"{storage.uri}/{artifact.key} has gone", "Train the run anew with --again.")
    if stat.size != artifact.size:
        raise _replaced(storage, artifact, f"it has {stat.size} bytes instead of {artifact.size}")
    with local_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = part.stat().st_size if part.exists() else 0
        if begun and _complete(storage, stat, part, progress) != artifact.sha256:
            part.unlink()
            begun = 0
        if not begun and _complete(storage, stat, part, progress) != artifact.sha256:
            part.unlink()
            raise _replaced(storage, artifact, "its SHA-256 differs")
        part.replace(path)
        flush_directory(path.parent)
    return artifact.size - begun


def _complete(storage: Storage, stat: Stat, part: Path, progress: Progress) -> str:
    """Appends what a file lacks of the object, in order, so that its size tells how much it has; its SHA-256."""
    with part.open("a+b") as file:
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        for piece in _pieces(storage, stat, file.tell()):
            file.write(piece)
            digest.update(piece)
            progress(len(piece))
        flush(file)
    return digest.hexdigest()


def _pieces(storage: Storage, stat: Stat, start: int) -> Iterator[bytes]:
    """The bytes of that very object from `start` on, in order; while one piece is used, the next ones are read."""

    def read(first: int) -> bytes:
        return storage.read_range(stat.key, first, min(_PIECE_BYTES, stat.size - first), stat.etag)

    return in_order(read, range(start, stat.size, _PIECE_BYTES), _PIECES_AT_A_TIME)


def _replaced(storage: Storage, artifact: Artifact, how: str) -> DataError:
    return DataError(
        f"{storage.uri}/{artifact.key} is not what the result says: {how}",
        "It was replaced since. Train the run anew with --again.",
    )


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
