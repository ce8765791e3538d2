"""Which keys we take, so that none leaves its root and each can be written in one line of a log."""

import re

from job.contract.errors import DataError

# Control characters, line and paragraph separators, and halves of characters, which are no UTF-8.
_UNWRITABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def checked_key(key: str, root: str) -> str:
    """`key`, when it names an object under `root`.

    Raises:
        DataError: for `..`, an absolute or empty key, an empty segment, or a control character such as a newline.
    """
    if _UNWRITABLE.search(key) or any(segment in ("", ".", "..") for segment in key.split("/")):
        raise DataError(
            f"{root}: the key {key!r} is not safe to use", "Rename the object: no '..', '//', leading '/' or newline."
        )
    return key
