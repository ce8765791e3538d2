"""From a URI to the storage behind it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from job.contract.errors import ConfigError
from job.storage import Storage
from job.storage.directory import DirectoryStorage

_budget: ContextVar[float | None] = ContextVar("budget_seconds", default=None)
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def open_storage(uri: str, budget_seconds: float | None = None) -> Storage:
    """The storage whose root is `uri`: `s3://bucket[/prefix]`, or a directory, which need not exist yet.

    Args:
        uri: the root.
        budget_seconds: for how long a store that does not answer is asked again before `UnavailableError`;
            None: as long as `hurried` says, else FINETUNE_S3_BUDGET_SECONDS, or half an hour.

    Raises:
        ConfigError: for any other scheme, or an endpoint that is no URL.
        UsageError: for one of our own variables that makes no sense.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return DirectoryStorage(Path(uri).absolute())
    if scheme[1] != "s3":
        raise ConfigError(f"{uri}: {scheme[1]}:// is not a storage", "Use s3://bucket/… or a directory.")
    from job.storage.s3 import S3Storage  # boto3 costs a quarter of a second, and a directory needs none of it

    return S3Storage.at(uri, budget_seconds or _budget.get())


@contextmanager
def hurried(budget_seconds: float) -> Iterator[None]:
    """Storages that are opened in the block, by whomever, ask a store that does not answer for no longer than this."""
    token = _budget.set(budget_seconds)
    try:
        yield
    finally:
        _budget.reset(token)


def locate(uri: str) -> tuple[Storage, str]:
    """Where an object or a prefix is: its storage and its key in it.

    `s3://bucket/a/b` is `a/b` in `s3://bucket`; a local path is its last part in its parent, and with a trailing slash
    the empty key in itself.
    """
    if _SCHEME.match(uri):
        root, _, key = uri.removeprefix("s3://").partition("/")
        return open_storage(f"s3://{root}" if uri.startswith("s3://") else uri), key
    parent, _, name = str(Path(uri).absolute()).rpartition("/")
    if uri.endswith("/"):
        return open_storage(f"{parent}/{name}"), ""
    return open_storage(parent or "/"), name
