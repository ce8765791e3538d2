"""Rows that are left out: why, where, and how many."""

import reprlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from job.contract.model import Document

_EXCERPT = 120  # characters
_WRITTEN = 10_000  # rejects.jsonl holds the first of them; the counts are complete
_SHOWN = 5  # in a message

BadReason = Literal[
    "too_large",
    "not_utf8",
    "not_json",
    "cut_off",
    "not_an_object",
    "duplicate_key",
    "wrong_columns",
    "unknown_format",
    "no_messages",
    "bad_message",
    "unknown_role",
    "wrong_order",
    "bad_content",
    "not_text",
    "empty_content",
    "no_answer",
    "bad_tools",
    "tools_unsupported",
    "bad_weight",
    "special_token",
    "template_refused",
    "not_rendered",
    "turns_unclear",
]
"""Why a row is bad. Stable: do not rename."""
DropReason = Literal["too_long", "nothing_to_train"]
"""Why a good row is left out. Stable: do not rename."""


class BadRow(Exception):
    """A row that cannot be used.

    Args:
        reason: its kind.
        message: what is wrong with it.
        field: the part of the row, such as `messages[2].role`; empty for the whole row.
        excerpt: the piece that is wrong, or its beginning.
    """

    def __init__(self, reason: BadReason, message: str, field: str = "", excerpt: object = "") -> None:
        super().__init__(message)
        self.reason: BadReason = reason
        self.message = message
        self.field = field
        self.excerpt = excerpt

    def at(self, file: str, where: str) -> "Reject":
        """It, with its place."""
        return Reject(
            file=file,
            where=where,
            reason=self.reason,
            field=self.field,
            message=self.message,
            excerpt=excerpt_of(self.excerpt),
        )


class Reject(Document):
    """A row that is left out; one line of rejects.jsonl."""

    file: str
    """As the user named it."""
    where: str
    """`line 12`, `item 12` of a JSON array, or `row group 0, row 12`; each counted from 1 as a reader shows it."""
    reason: BadReason | DropReason
    field: str = ""
    message: str
    excerpt: str = ""

    def __str__(self) -> str:
        field = f", {self.field}" if self.field else ""
        excerpt = f": {self.excerpt}" if self.excerpt else ""
        return f"{self.file}, {self.where}{field}: {self.message}{excerpt}"


class Rejects:
    """Counts what is left out, keeps the first few, and writes the first 10,000 to a file.

    Use `open_rejects`.
    """

    def __init__(self, path: Path | None) -> None:
        self.counts: Counter[str] = Counter()
        self.shown: list[Reject] = []
        self._file = path.open("w", encoding="utf-8") if path else None

    def add(self, reject: Reject) -> None:
        """Note one."""
        self.counts[reject.reason] += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(reject)
        if self._file and self.counts.total() <= _WRITTEN:
            self._file.write(reject.model_dump_json() + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file:
            self._file.close()


@contextmanager
def open_rejects(path: Path | None) -> Iterator[Rejects]:
    """A `Rejects` that writes to `path`, or nowhere."""
    rejects = Rejects(path)
    try:
        yield rejects
    finally:
        rejects.close()


def excerpt_of(value: object) -> str:
    """The beginning of a value on one line, in characters that any terminal and file can hold."""
    if isinstance(value, bytes):
        value = value[: 4 * _EXCERPT].decode("utf-8", "replace")
    text = value if isinstance(value, str) else reprlib.repr(value)
    text = "".join(c if c.isprintable() else " " for c in text[: 4 * _EXCERPT])
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    return text if len(text) <= _EXCERPT else text[: _EXCERPT - 1] + "…"
