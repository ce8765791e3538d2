"""One object of S3: requests about it, each tried again within the budget, and their answers in our words."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from job.contract.errors import DataError, NoInputError
from job.storage import Stat
from job.storage.checksums import stated
from job.storage.s3_client import Answer, Arguments, S3Settings
from job.storage.s3_errors import ChangedObject, MissingObject

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_DOCUMENT_BYTES = 16 << 20
_ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")


@dataclass(frozen=True)
class S3Object:
    """An object, whether or not it exists."""

    settings: S3Settings
    bucket: str
    root: str
    """The prefix that keys are told without: empty, or with a slash at its end."""
    key: str

    @property
    def uri(self) -> str:
        """`s3://bucket/key`."""
        return f"s3://{self.bucket}/{self.root}{self.key}"

    def request(self, ask: "Callable[[S3Client, Arguments], Answer]") -> Answer:
        """The answer to one request; `ask` gets the client, and the bucket and key as its arguments."""
        at = {"Bucket": self.bucket, "Key": self.root + self.key}
        return self.settings.request(self.uri, lambda s3: ask(s3, at))

    def head(self) -> Stat | None:
        """The object's stat, None when there is none; `NoInputError` when it lies in an archive."""
        try:
            answer: Mapping[str, Any] = self.request(lambda s3, at: s3.head_object(**at, ChecksumMode="ENABLED"))
        except MissingObject:
            return None
        restored = 'ongoing-request="false"' in answer.get("Restore", "")
        if (answer.get("StorageClass") in _ARCHIVES or "ArchiveStatus" in answer) and not restored:
            raise NoInputError(f"{self.uri} is archived", "Restore it from the archive first, or name another.")
        return self._stat(answer)

    def get(self) -> tuple[bytes, Stat] | None:
        """A document of at most 16 MiB and its stat, None when there is none."""

        def read(s3: "S3Client", at: Arguments) -> tuple[bytes, Stat]:
            answer = s3.get_object(**at, ChecksumMode="ENABLED")
            with answer["Body"] as body:
                if answer["ContentLength"] > _DOCUMENT_BYTES:
                    raise DataError(f"{self.uri} is larger than 16 MiB, which no document of a run is")
                return body.read(), self._stat(answer)

        try:
            return self.request(read)
        except MissingObject:
            return None

    def read_range(self, start: int, length: int, etag: str) -> bytes:
        """Bytes of the object with that very tag."""
        wanted: Arguments = {"Range": f"bytes={start}-{start + length - 1}", "IfMatch": f'"{etag}"'}
        with self.unchanged():
            body = self.request(lambda s3, at: s3.get_object(**at, **wanted)["Body"].read())
        if len(body) != length:
            raise DataError(f"{self.uri} ends before byte {start + length}")
        return body

    def send(self, body: bytes, condition: Arguments) -> Stat:
        """Put a body; the store confirms its checksum. The time is that of the answer.

        Raises:
            ChangedObject: the condition does not hold.
        """
        checksum = self.settings.checksum
        value = checksum.of(body, 0)
        answer = self.request(lambda s3, at: s3.put_object(**at, **condition, **checksum.sent(value), Body=body))
        checksum.confirm(stated(answer), checksum.text(value), self.uri)
        return self._stat({"ContentLength": len(body), "LastModified": _answered_at(answer), **answer})

    def put(self, body: bytes, condition: Arguments) -> Stat:
        """Put a body, and ask for the object's stat: only that has the time that every later reader will see."""
        sent = self.send(body, condition)
        found = self.head()
        if found is None:
            raise DataError(f"{self.uri} was gone a moment after it was written")
        # Whoever has replaced it since has changed the tag; with ours the next put-if-match fails, as it must.
        return replace(sent, last_modified=found.last_modified)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within the block, an object that is no longer the one that was named is an error."""
        try:
            yield
        except (ChangedObject, MissingObject) as error:
            raise DataError(
                f"{self.uri} changed while it was read, or since the run was frozen",
                "Let nothing replace a run's inputs; start a fresh run with --again.",
            ) from error

    def _stat(self, answer: Mapping[str, Any]) -> Stat:
        return Stat(
            self.key,
            answer["ContentLength"],
            answer["ETag"].strip('"'),
            answer["LastModified"],
            answer.get("VersionId"),
            stated(answer),
            _answered_at(answer),
        )


def _answered_at(answer: Mapping[str, Any]) -> datetime:
    """By the store's clock; by this machine's where what stands before the store takes the time away."""
    told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return parsedate_to_datetime(told) if told else datetime.now(UTC)
