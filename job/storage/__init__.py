"""One small protocol over S3 and over a directory.

Keys are relative to the storage's root, with forward slashes. Every method raises this package's `JobError` kinds only:
`NoInputError` (missing, archived), `PermissionDenied`, `UnavailableError` (the retry budget is spent), `LocalIOError`
(the local disk), `DataError` (an object that changed under us or arrived damaged), `ConfigError` (the store cannot do it).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

Progress = Callable[[int], None]
"""Called with the number of bytes that have moved since the last call."""


def no_progress(_: int) -> None:
    """A `Progress` that tells nobody."""


@dataclass(frozen=True)
class Stat:
    """What the store says of an object, without reading it."""

    key: str
    size: int
    etag: str
    last_modified: datetime
    """By the store's clock, timezone-aware."""
    version_id: str | None = None
    checksum: str | None = None
    """`CRC64NVME:<base64>` or `CRC32:<base64>`, as the store confirmed it; None where it keeps none."""
    told_at: datetime | None = field(default=None, compare=False)
    """When the store said all this, by the same clock; None of an object in a list."""

    @property
    def age(self) -> timedelta | None:
        """How long ago it was modified when the store said so: no clock but the store's counts."""
        return self.told_at - self.last_modified if self.told_at else None


@dataclass(frozen=True)
class Uploaded:
    """An object that the store has confirmed."""

    stat: Stat
    sha256: str
    """Of the bytes that were sent, in hex."""


class Storage(Protocol):
    """An object store, seen from one root."""

    @property
    def uri(self) -> str:
        """The root: `s3://bucket[/prefix]` or an absolute directory, without a trailing slash."""
        ...

    def head(self, key: str) -> Stat | None:
        """The object's stat, None when there is no such object."""
        ...

    def get(self, key: str) -> tuple[bytes, Stat] | None:
        """A small control document (at most 16 MiB) and its stat, None when there is none."""
        ...

    def put(self, key: str, body: bytes) -> Stat:
        """Write a small object, whatever was there."""
        ...

    def put_if_absent(self, key: str, body: bytes) -> Stat | None:
        """Write a small object unless the key holds another.

        Returns:
            The stat when the key now holds exactly `body` (also when a retried put met its own success),
            None when it holds something else.
        """
        ...

    def put_if_match(self, key: str, body: bytes, etag: str) -> Stat | None:
        """Replace the object whose tag is `etag` (compare-and-swap).

        Returns:
            The stat when the key now holds exactly `body` (also when a retried put met its own success),
            None when it holds something else or nothing.
        """
        ...

    def list(self, prefix: str) -> Iterator[Stat]:
        """Every object whose key starts with `prefix`, sorted by key."""
        ...

    def read_range(self, key: str, start: int, length: int, etag: str) -> bytes:
        """`length` bytes from `start` of the object with that very tag; `DataError` when it has changed."""
        ...

    def download(self, stat: Stat, path: Path, progress: Progress = no_progress) -> None:
        """Fetch the object that `stat` names, whole and unchanged, to `path`.

        It is written under a temporary name beside `path` and renamed when size and checksum hold.
        """
        ...

    def upload(self, path: Path, key: str, progress: Progress = no_progress) -> Uploaded:
        """Send a file, with a checksum that the store confirms."""
        ...

    def end_uploads(self, prefix: str) -> int:
        """End uploads to keys that start with `prefix` and were never finished, as a process that is killed leaves them.

        Returns:
            How many there were.
        """
        ...
