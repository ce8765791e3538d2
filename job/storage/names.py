"""Which keys we take, so that none leaves its root and each can be written in one line of a log."""

import re

from job.contract.errors import DataError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def checked_key(key: str, root: str) -> str:
    """`key`, when it names an object under `root`.

    Raises:
        DataError: for `..`, an absolute or empty key, an empty segment, or a control character such as a newline.
    """
    segments = key.split("/")
    if _CONTROL.search(key) or any(segment in ("", ".", "..") for segment in segments) or "\ufffd" in key:
        raise DataError(
            f"{root}: the key {key!r} is not safe to use", "Rename the object: no '..', '//', leading '/' or newline."
        )
    return key
