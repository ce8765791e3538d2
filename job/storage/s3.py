"""The storage protocol over S3."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from job.contract.errors import ConfigError
from job.storage import Progress, Stat, Uploaded, no_progress, s3_parts
from job.storage.names import checked_key
from job.storage.s3_client import Arguments, S3Settings
from job.storage.s3_errors import ChangedObject, MissingObject
from job.storage.s3_object import S3Object

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import ListObjectsV2OutputTypeDef

# The bucket's name: docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_URI = re.compile(r"^s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?$")


@dataclass(frozen=True)
class S3Storage:
    """A bucket, or a prefix of one."""

    bucket: str
    root: str
    """The prefix: empty, or with a slash at its end."""
    settings: S3Settings

    @classmethod
    def at(cls, uri: str, budget_seconds: float | None = None) -> "S3Storage":
        """The storage of `s3://bucket[/prefix]`; its arguments and errors are those of `open_storage`."""
        found = _URI.match(uri)
        if found is None:
            raise ConfigError(f"{uri} is not s3://bucket/…", "Correct the URI.")
        prefix = (found[2] or "").rstrip("/")
        root = f"{checked_key(prefix, uri)}/" if prefix else ""
        return cls(found[1], root, S3Settings.from_environment(budget_seconds))

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.root}".rstrip("/")

    def head(self, key: str) -> Stat | None:
        return self._object(key).head()

    def get(self, key: str) -> tuple[bytes, Stat] | None:
        return self._object(key).get()

    def put(self, key: str, body: bytes) -> Stat:
        return self._object(key).put(body, {})

    def put_if_absent(self, key: str, body: bytes) -> Stat | None:
        return self._put_on(key, body, {"IfNoneMatch": "*"})

    def put_if_match(self, key: str, body: bytes, etag: str) -> Stat | None:
        return self._put_on(key, body, {"IfMatch": f'"{etag}"'})

    def list(self, prefix: str) -> Iterator[Stat]:
        token: Arguments = {}
        while True:
            answer = self._page(prefix, token)
            for found in answer.get("Contents", []):
                key = found["Key"].removeprefix(self.root)
                yield Stat(key, found["Size"], found["ETag"].strip('"'), found["LastModified"])
            if not answer["IsTruncated"]:
                return
            token = {"ContinuationToken": answer["NextContinuationToken"]}

    def read_range(self, key: str, start: int, length: int, etag: str) -> bytes:
        return self._object(key).read_range(start, length, etag)

    def download(self, stat: Stat, path: Path, progress: Progress = no_progress) -> None:
        s3_parts.download(self._object(stat.key), stat, path, progress)

    def upload(self, path: Path, key: str, progress: Progress = no_progress) -> Uploaded:
        return s3_parts.upload(self._object(key), path, progress)

    def end_uploads(self, prefix: str) -> int:
        at: Arguments = {"Bucket": self.bucket, "Prefix": self.root + prefix}
        pages = self.settings.request(
            f"s3://{self.bucket}/{self.root}{prefix}",
            lambda s3: list(s3.get_paginator("list_multipart_uploads").paginate(**at)),
        )
        unfinished = [upload for page in pages for upload in page.get("Uploads", [])]
        for upload in unfinished:
            s3_parts.abort(self._object(upload["Key"].removeprefix(self.root)), upload["UploadId"])
        return len(unfinished)

    def _page(self, prefix: str, token: Arguments) -> "ListObjectsV2OutputTypeDef":
        under = self.root + prefix
        return self.settings.request(
            f"s3://{self.bucket}/{under}",
            lambda s3: s3.list_objects_v2(Bucket=self.bucket, Prefix=under, **token),
        )

    def _object(self, key: str) -> S3Object:
        return S3Object(self.settings, self.bucket, self.root, checked_key(key, self.uri))

    def _put_on(self, key: str, body: bytes, condition: Arguments) -> Stat | None:
        there = self._object(key)
        try:
            return there.put(body, condition)
        except (ChangedObject, MissingObject):
            # A put that was sent again because its answer got lost meets its own success: the key then holds our bytes.
            found = there.get()
            return found[1] if found and found[0] == body else None
