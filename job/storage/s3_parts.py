"""Files to and from S3, large ones in parts, several at a time.

Why this is not a transfer manager of boto3's, and the figures: docs/decisions/0002-transfer-engine.md.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from job.contract.errors import DataError, JobError
from job.contract.model import sha256_hex
from job.storage import Progress, Stat, Uploaded
from job.storage.checksums import Checksum, of_content, stated
from job.storage.in_order import in_order
from job.storage.local_files import local_errors, whole_file
from job.storage.s3_client import Arguments
from job.storage.s3_errors import MissingObject
from job.storage.s3_object import S3Object

if TYPE_CHECKING:
    from botocore.response import StreamingBody

Argument = TypeVar("Argument")
Moved = tuple[Arguments, int, int]
"""A part that has moved: what the end of an upload says of it, its checksum, its size."""

# 17 parts of 8 MiB are in memory at most. Measured: more at a time gained nothing, fewer lost when cores were busy.
_PART_BYTES = 8 << 20
_AT_A_TIME = 16
_MOST_PARTS = 10_000  # S3's limit
_CHUNK_BYTES = 256 << 10  # stays in a core's cache


def upload(target: S3Object, path: Path, progress: Progress) -> Uploaded:
    """Send a file; the store confirms the checksum of each part and of the whole."""
    with local_errors(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > _PART_BYTES:
            return _upload_parts(target, file, size, progress)
        body = file.read()
    sent = target.send(body, {})
    progress(len(body))
    return Uploaded(sent, sha256_hex(body))


def abort(target: S3Object, upload_id: str) -> None:
    """End an upload that is not finished; one that has just ended is none."""
    with suppress(MissingObject):
        target.request(lambda s3, at: s3.abort_multipart_upload(**at, UploadId=upload_id))


def download(source: S3Object, stat: Stat, path: Path, progress: Progress) -> None:
    """Fetch the object that `stat` names, whole and unchanged, to `path`."""
    pinned: Arguments = {"IfMatch": f'"{stat.etag}"'} | ({"VersionId": stat.version_id} if stat.version_id else {})
    with source.unchanged(), local_errors(path), whole_file(path) as file:
        if stat.size > _PART_BYTES:
            _download_parts(source, stat, pinned, file.fileno(), progress)
            return
        # botocore checks the checksum of a whole answer itself.
        body = source.request(lambda s3, at: s3.get_object(**at, **pinned, ChecksumMode="ENABLED")["Body"].read())
        if len(body) != stat.size:
            raise DataError(f"{source.uri} has {len(body)} bytes instead of {stat.size}")
        file.write(body)
        progress(len(body))


def _upload_parts(target: S3Object, file: IO[bytes], size: int, progress: Progress) -> Uploaded:
    checksum = target.settings.checksum
    begun = target.request(lambda s3, at: s3.create_multipart_upload(**at, **checksum.announced()))
    upload: Arguments = {"UploadId": begun["UploadId"]}

    def send(numbered: tuple[int, bytes]) -> Moved:
        number, body = numbered
        value = checksum.of(body, 0)
        part: Arguments = {"PartNumber": number, **checksum.sent(value)}
        answer = target.request(lambda s3, at: s3.upload_part(**at, **upload, **part, Body=body))
        checksum.confirm(stated(answer), checksum.text(value), target.uri)
        return {**part, "ETag": answer["ETag"]}, value, len(body)

    digest = hashlib.sha256()
    numbered_parts = enumerate(_parts(file, size, digest.update), 1)
    try:
        parts, values, sizes = zip(*_in_order(send, numbered_parts, progress), strict=True)
        with suppress(MissingObject):  # asked again after a lost answer, the store no longer knows the upload
            target.request(
                lambda s3, at: s3.complete_multipart_upload(**at, **upload, MultipartUpload={"Parts": list(parts)})
            )
    except BaseException:
        with suppress(JobError):  # what cannot be ended now, the next attempt or the bucket's lifecycle rule ends
            abort(target, begun["UploadId"])
        raise
    found = target.head()
    if found is None or found.size != sum(sizes):
        raise DataError(f"{target.uri} is not what was sent there a moment ago")
    checksum.confirm(found.checksum, checksum.text_of_parts(values, sizes), target.uri)
    return Uploaded(found, digest.hexdigest())


def _parts(file: IO[bytes], size: int, seen: Callable[[bytes], None]) -> Iterator[bytes]:
    """The file's bytes in order, each part shown to `seen` first."""
    while body := file.read(_part_bytes(size)):
        seen(body)
        yield body


def _download_parts(source: S3Object, stat: Stat, pinned: Arguments, descriptor: int, progress: Progress) -> None:
    known = stat.checksum or stated(
        source.request(lambda s3, at: s3.head_object(**at, **pinned, ChecksumMode="ENABLED"))
    )
    checksum, expected = of_content(known)

    def fetch(start: int) -> Moved:
        end = min(start + _part_bytes(stat.size), stat.size)
        wanted: Arguments = {**pinned, "Range": f"bytes={start}-{end - 1}"}
        value, size = source.request(
            lambda s3, at: _write_at(descriptor, start, s3.get_object(**at, **wanted)["Body"], checksum)
        )
        if size != end - start:
            raise DataError(f"{source.uri}: the store sent {size} bytes for {wanted['Range']}")
        return {}, value, size

    starts = range(0, stat.size, _part_bytes(stat.size))
    _, values, sizes = zip(*_in_order(fetch, starts, progress), strict=True)
    if checksum.text(checksum.joined(values, sizes)) != expected:
        raise DataError(f"{source.uri} arrived damaged: its {checksum.name} is not {expected}", "Start the run again.")


def _write_at(descriptor: int, start: int, body: "StreamingBody", checksum: Checksum) -> tuple[int, int]:
    """Write an answer's bytes from `start` on; their checksum and how many they are."""
    value, position = 0, start
    with body:
        while chunk := body.read(_CHUNK_BYTES):
            value = checksum.of(chunk, value)
            while chunk:
                written = os.pwrite(descriptor, chunk, position)
                position += written
                chunk = chunk[written:]
    return value, position - start


def _part_bytes(size: int) -> int:
    """8 MiB, and more only where S3's limit of 10,000 parts asks for it."""
    return max(_PART_BYTES, -(-size // _MOST_PARTS))


def _in_order(move: Callable[[Argument], Moved], arguments: Iterable[Argument], progress: Progress) -> Iterator[Moved]:
    """What `move` gives for each argument, in their order, as the progress is told."""
    for moved in in_order(move, arguments, _AT_A_TIME):
        progress(moved[2])
        yield moved
