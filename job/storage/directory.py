"""The storage protocol over a directory."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedIOBase, BufferedRandom
from pathlib import Path

from job.contract.errors import ConfigError, DataError
from job.contract.model import sha256_hex
from job.storage import Progress, Stat, Uploaded, no_progress
from job.storage.local_files import flush, flush_directory, is_unfinished, local_errors, unfinished_file, whole_file
from job.storage.names import checked_key

# Up to this size a tag is the content's hash, which holds over copies; beyond it reading the file would cost too much.
_HASHED_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class DirectoryStorage:
    """A directory seen as an object store.

    A new object is linked or renamed into place, so it is whole or absent; writers that replace one take a lock on its
    directory, so that put-if-match compares and swaps in one step, also between processes.

    Args:
        root: an absolute directory; it need not exist yet.
    """

    root: Path

    @property
    def uri(self) -> str:
        return str(self.root)

    def head(self, key: str) -> Stat | None:
        path = self._path(key)
        with local_errors(path):
            try:
                with path.open("rb") as file:
                    return _stat(key, file)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def get(self, key: str) -> tuple[bytes, Stat] | None:
        path = self._path(key)
        with local_errors(path):
            try:
                with path.open("rb") as file:
                    return file.read(), _stat(key, file)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def put(self, key: str, body: bytes) -> Stat:
        path = self._path(key)
        with local_errors(path), unfinished_file(path) as file:
            _fill(file, body)
            with _locked(path.parent):
                return _replace(key, path, file)

    def put_if_absent(self, key: str, body: bytes) -> Stat | None:
        path = self._path(key)
        with local_errors(path), unfinished_file(path) as file:
            _fill(file, body)
            try:
                path.hardlink_to(file.name)
            except FileExistsError:
                found = self.get(key)
                return found[1] if found and found[0] == body else None
            except PermissionError as error:  # the file beside it could be written, so it is the link that is refused
                raise ConfigError(
                    f"{path.parent}: the file system has no hard links, so nothing can be put there if absent",
                    "Use another file system, or an S3 bucket.",
                ) from error
            flush_directory(path.parent)
            return _stat(key, file)

    def put_if_match(self, key: str, body: bytes, etag: str) -> Stat | None:
        path = self._path(key)
        if self.head(key) is None:
            return None
        with local_errors(path), unfinished_file(path) as file:
            _fill(file, body)
            with _locked(path.parent):
                found = self.get(key)
                if found and found[1].etag == etag:
                    return _replace(key, path, file)
                return found[1] if found and found[0] == body else None

    def list(self, prefix: str) -> Iterator[Stat]:
        for key in sorted(key for key, is_finished in self._files(prefix) if is_finished):
            if stat := self.head(key):
                yield stat

    def read_range(self, key: str, start: int, length: int, etag: str) -> bytes:
        path = self._path(key)
        with local_errors(path), path.open("rb") as file:
            file.seek(start)
            body = file.read(length)
            self._unchanged(_stat(key, file), etag)
        if len(body) != length:
            raise DataError(f"{path} ends before byte {start + length}")
        return body

    def download(self, stat: Stat, path: Path, progress: Progress = no_progress) -> None:
        source = self._path(stat.key)
        with local_errors(source), source.open("rb") as file, local_errors(path), whole_file(path) as target:
            _copy(file, target, progress)
            self._unchanged(_stat(stat.key, file), stat.etag)

    def upload(self, path: Path, key: str, progress: Progress = no_progress) -> Uploaded:
        target = self._path(key)
        with local_errors(path), path.open("rb") as source, local_errors(target), unfinished_file(target) as file:
            sha256 = _copy(source, file, progress)
            flush(file)
            with _locked(target.parent):
                return Uploaded(_replace(key, target, file), sha256)

    def end_uploads(self, prefix: str) -> int:
        unfinished = [self._path(key) for key, is_finished in self._files(prefix) if not is_finished]
        for path in unfinished:
            with local_errors(path):
                path.unlink(missing_ok=True)
        return len(unfinished)

    def _files(self, prefix: str) -> Iterator[tuple[str, bool]]:
        """The key of every file whose key starts with `prefix`, and whether it is whole."""
        if ".." in prefix.split("/"):
            raise DataError(f"{self.uri}: the prefix {prefix!r} leaves the directory", "Write it without '..'.")
        for parent, _, names in os.walk(self.root / prefix.rpartition("/")[0]):
            for name in names:
                key = Path(parent, name).relative_to(self.root).as_posix()
                if key.startswith(prefix):
                    yield key, not is_unfinished(name)

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key, self.uri)

    def _unchanged(self, stat: Stat, etag: str) -> None:
        if stat.etag != etag:
            raise DataError(f"{self.uri}/{stat.key} changed while it was read", "Start the run again.")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _stat(key: str, file: BufferedIOBase) -> Stat:
    """The stat of an open file. Reads it, and moves its position, when it is small."""
    found = os.fstat(file.fileno())
    if found.st_size <= _HASHED_BYTES:
        file.seek(0)
        etag = sha256_hex(file.read(_HASHED_BYTES))
    else:
        etag = f"{found.st_mtime_ns}-{found.st_size}-{found.st_ino}"
    modified = datetime.fromtimestamp(found.st_mtime, UTC)
    return Stat(key, found.st_size, etag, modified, told_at=datetime.now(UTC))


def _fill(file: BufferedRandom, body: bytes) -> None:
    file.write(body)
    flush(file)


def _replace(key: str, path: Path, file: BufferedRandom) -> Stat:
    stat = _stat(key, file)
    Path(file.name).replace(path)
    flush_directory(path.parent)
    return stat


def _copy(source: BufferedIOBase, target: BufferedRandom, progress: Progress) -> str:
    """Copy all bytes; their SHA-256."""
    digest = hashlib.sha256()
    while chunk := source.read(_CHUNK_BYTES):
        digest.update(chunk)
        target.write(chunk)
        progress(len(chunk))
    return digest.hexdigest()
