"""What a dataset's file really holds, told by its content, and a stream of it that cannot expand without end.

A file that is not what its name says is refused: it is more often damage or a mistake than a matter of taste.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa

from job.contract.errors import DataError

Kind = Literal["json lines", "json array", "csv", "parquet"]
Compression = Literal["gzip", "zstd"]

_NAMES: dict[str, tuple[Kind, ...]] = {
    ".jsonl": ("json lines", "json array"),
    ".ndjson": ("json lines", "json array"),
    ".json": ("json lines", "json array"),
    ".csv": ("csv",),
    ".parquet": ("parquet",),
    ".pq": ("parquet",),
}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_COMPRESSION_MAGICS: dict[bytes, Compression] = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_FOREIGN = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "an empty zip archive",
    b"Rar!": "a rar archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF": "a PDF",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself",
    b"<": "HTML or XML, perhaps the error page of a download",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x00\x00\xfe\xff": "UTF-32 text",
}
_BOM = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20
_HEAD_BYTES = 512  # a tar archive says so at byte 257


def kind_of(path: Path, name: str, max_expansion: int) -> Kind:
    """What a file holds.

    Args:
        path: the file.
        name: what the user calls it; its ending must not promise something else.
        max_expansion: how many times its own size a compressed file may expand to.

    Raises:
        DataError: it is empty, or nothing that we read, or not what its name says.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    _refuse_foreign(head, name)
    kind: Kind
    if head.startswith(b"PAR1"):
        kind = "parquet"
    else:
        with open_stream(path, name, max_expansion) as stream:
            _refuse_foreign(stream.peek(_HEAD_BYTES), name)
            kind = _kind_of_text(stream, name)
    promised = _NAMES.get(_endings(name)[0])
    if promised and kind not in promised:
        raise _not_what_it_says(name, _endings(name)[0], kind)
    return kind


@contextmanager
def open_stream(path: Path, name: str, max_expansion: int) -> Iterator[io.BufferedReader]:
    """A file's bytes, decompressed, without a byte order mark.

    Raises:
        DataError: also while it is read: it is damaged, cut off, or expands too far.
    """
    with path.open("rb") as file:
        head = file.read(4)
    found = next((kind for magic, kind in _COMPRESSION_MAGICS.items() if head.startswith(magic)), None)
    ending, compression = _endings(name)
    if compression and found != _COMPRESSIONS[compression]:
        raise _not_what_it_says(name, compression, found or "not compressed")
    if found and not compression and ending in _NAMES:
        raise _not_what_it_says(name, ending, f"compressed by {found}")
    raw: Any = _Expanding(path, name, found, max_expansion) if found else io.FileIO(path)
    with io.BufferedReader(raw, _BUFFER_BYTES) as stream:
        if stream.peek(3).startswith(_BOM):
            stream.read(3)
        yield stream


class _Expanding(io.RawIOBase):
    """What a compressed file expands to, up to a limit."""

    def __init__(self, path: Path, name: str, compression: Compression, max_expansion: int) -> None:
        self._source = pa.input_stream(str(path), compression=compression)
        self._name, self._compression, self._max_expansion = name, compression, max_expansion
        self._left = max_expansion * path.stat().st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        try:
            piece = self._source.read(len(buffer))
        except OSError as error:
            if error.errno:
                raise
            raise DataError(f"{self._name} is damaged or cut off: {self._compression} says: {error}") from error
        self._left -= len(piece)
        if self._left < 0:
            raise DataError(
                f"{self._name} expands to more than {self._max_expansion} times its size",
                "If that is right, raise dataset.max_expansion.",
            )
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._source.close()
        super().close()


def _kind_of_text(stream: io.BufferedReader, name: str) -> Kind:
    """What the first byte that is no white space tells."""
    line = b""
    for line in iter(lambda: stream.readline(_BUFFER_BYTES), b""):
        if line.strip():
            break
    start = line.lstrip()
    if not start:
        raise DataError(f"{name} is empty" if not line else f"{name} holds nothing but white space")
    if b"\x00" in start[:4]:
        raise DataError(f"{name} is binary, or UTF-16 text", "Save it as UTF-8.")
    ending, _ = _endings(name)
    if start.startswith(b"{"):
        return "json lines"
    if start.startswith(b"["):
        return "json array"
    if ending == ".csv":
        return "csv"
    raise DataError(
        f"{name} holds neither JSON nor parquet: it begins with {start[:40]!r}",
        "Rows are JSON lines, a JSON array, parquet, or CSV in a file whose name ends in .csv.",
    )


def _endings(name: str) -> tuple[str, str]:
    """The ending of a name that tells its kind, and the one that tells its compression; each may be empty."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSIONS else ""
    return (suffixes[-1] if suffixes and suffixes[-1] in _NAMES else ""), compression


def _refuse_foreign(head: bytes, name: str) -> None:
    """Refuse what is often taken for a dataset."""
    found = next((what for magic, what in _FOREIGN.items() if head.removeprefix(_BOM).startswith(magic)), None)
    if head[257:262] == b"ustar":
        found = "a tar archive"
    if found:
        raise DataError(
            f"{name} is {found}", "Give JSON lines, a JSON array, CSV or parquet in UTF-8, plain, .gz or .zst."
        )


def _not_what_it_says(name: str, ending: str, found: str) -> DataError:
    return DataError(f"{name} is not what its name says: not {ending} but {found}", "Rename it, or make it anew.")
