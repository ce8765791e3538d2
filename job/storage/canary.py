"""The write probe: whether a run could be published here, known in seconds instead of after hours."""

from job.contract.errors import ConfigError
from job.storage import Stat, Storage
from job.storage.opening import open_storage

_BUDGET_SECONDS = 10


def probe(storage: Storage, key: str) -> Stat:
    """Write, list, conditionally write and look at `key`, which nobody else uses and which is left there.

    Returns:
        The probe's stat; its `last_modified` is the store's present time.

    Raises:
        PermissionDenied: this identity may not do one of these.
        ConfigError: the store ignores or refuses conditional writes, or confirms no checksum.
        UnavailableError: it does not answer within ten seconds.
    """
    hurried = open_storage(storage.uri, _BUDGET_SECONDS)
    written = hurried.put_if_absent(key, b"1")
    if written is None or [found.key for found in hurried.list(key)] != [key]:
        raise ConfigError(f"{storage.uri}/{key} is not what was written there a moment ago", "Use a consistent store.")
    if hurried.put_if_absent(key, b"2") is not None:
        raise _unconditional(storage, "If-None-Match")
    replaced = hurried.put_if_match(key, b"3", written.etag)
    if replaced is None or hurried.put_if_match(key, b"4", written.etag) is not None:
        raise _unconditional(storage, "If-Match")
    found = hurried.head(key)
    if found is None or found.etag != replaced.etag:
        raise ConfigError(f"{storage.uri}/{key} is not what was written there a moment ago", "Use a consistent store.")
    return found


def _unconditional(storage: Storage, header: str) -> ConfigError:
    return ConfigError(
        f"{storage.uri}: the store does not honour {header}, so two attempts of a run could overwrite each other",
        "Use a store with conditional writes.",
    )
