"""The rows of one split: written as an Arrow stream and counted."""

from array import array
from collections import Counter
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from job.dataset.masking import NOT_TRAINED
from job.dataset.prepared import SplitReport

SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))])
"""Of a split's file."""

_BATCH_TOKENS = 1 << 18


class Split:
    """A context in which rows are added; the file has its name once the context ends without an error.

    Args:
        path: where the rows go; None to count them only.
    """

    def __init__(self, path: Path | None) -> None:
        self.counts: Counter[str] = Counter()
        """By the names of `SplitReport`'s fields; `dropped` is all good rows that were left out."""
        self.bad: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self._lengths: Counter[int] = Counter()
        self._digests = array("Q")
        self._rows = _RowsFile(path) if path else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._rows:
            self._rows.close(keep=error is None)

    def add(self, ids: list[int], labels: list[int], digest: int) -> None:
        """Take a row.

        Args:
            ids: its tokens.
            labels: as many, `NOT_TRAINED` where the loss is not taken.
            digest: 64 bits that tell its text from others.
        """
        self.counts["rows"] += 1
        self.counts["tokens"] += len(ids)
        self.counts["trained_tokens"] += len(labels) - labels.count(NOT_TRAINED)
        self._lengths[len(ids)] += 1
        self._digests.append(digest)
        if self._rows:
            self._rows.write(ids, labels)

    def overlap(self, other: "Split") -> int:
        """How many rows of this split are in the other, too."""
        if not self._digests or not other._digests:
            return 0
        found = pc.is_in(_as_arrow(self._digests), value_set=_as_arrow(other._digests))
        return found.to_pylist().count(True)

    def report(self) -> SplitReport:
        """The counts."""
        histogram: Counter[int] = Counter()
        for length, rows in self._lengths.items():
            histogram[1 << (length - 1).bit_length()] += rows
        counted = (
            "read",
            "rows",
            "too_long",
            "answers_lost",
            "truncated",
            "nothing_to_train",
            "tokens",
            "trained_tokens",
        )
        return SplitReport(
            **{name: self.counts[name] for name in counted},
            bad=dict(self.bad),
            formats=dict(self.formats),
            longest=max(self._lengths, default=0),
            lengths={str(bound): histogram[bound] for bound in sorted(histogram)},
            duplicates=len(self._digests) - len(pc.unique(_as_arrow(self._digests))),
        )


class _RowsFile:
    """An Arrow stream that is renamed from `<name>.partial` when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path, self._partial = path, path.with_name(f"{path.name}.partial")
        path.unlink(missing_ok=True)  # what an earlier start left must not outlive a failure of this one
        self._sink = pa.OSFile(str(self._partial), "wb")
        self._writer = pa.ipc.new_stream(self._sink, SCHEMA)
        self._ids: list[list[int]] = []
        self._labels: list[list[int]] = []
        self._tokens = 0

    def write(self, ids: list[int], labels: list[int]) -> None:
        self._ids.append(ids)
        self._labels.append(labels)
        self._tokens += len(ids)
        if self._tokens >= _BATCH_TOKENS:
            self._flush()

    def close(self, keep: bool) -> None:
        if keep:
            self._flush()
        self._writer.close()
        self._sink.close()
        if keep:
            self._partial.rename(self._path)
        else:
            self._partial.unlink()

    def _flush(self) -> None:
        columns = [pa.array(column, type=pa.list_(pa.int32())) for column in (self._ids, self._labels)]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self._ids, self._labels, self._tokens = [], [], 0


def _as_arrow(digests: "array[int]") -> "pa.Array[Any]":
    """The same memory as an Arrow array."""
    return pa.Array.from_buffers(pa.uint64(), len(digests), [None, pa.py_buffer(digests)])
