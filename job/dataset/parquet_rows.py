"""Rows out of a parquet file.

A parquet file can be small and hold rows without end: a dictionary names one long value a million times. So what is
decoded is counted as it is with compressed text, and few rows are decoded at once.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from job.contract.errors import DataError
from job.dataset.chats import COLUMNS
from job.dataset.rejects import BadRow

_BATCH_ROWS = 16  # each of at most max_row_bytes, or of what a dictionary makes of them
_BUFFER_BYTES = 1 << 20


def read_parquet(
    path: Path, name: str, max_row_bytes: int, max_expansion: int
) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """The rows of a parquet file, in order, of the columns that a format knows; nulls are left out.

    Args:
        path: the file.
        name: what the user calls it.
        max_row_bytes: a larger row is a bad one.
        max_expansion: how many times the file's size its rows may take.

    Raises:
        DataError: the file is damaged, expands too far, or has no column that a format knows.
    """
    left = max_expansion * path.stat().st_size
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            columns = [column for column in file.schema_arrow.names if column in COLUMNS]
            if not columns:
                found = ", ".join(file.schema_arrow.names)
                raise DataError(f"{name} has none of the columns {', '.join(sorted(COLUMNS))}: it has {found}")
            for group in range(file.num_row_groups):
                _refuse_expansion(file.metadata.row_group(group), name, max_expansion)
                number = 0
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                    left -= batch.nbytes
                    if left < 0:
                        raise _expands(name, max_expansion)
                    for row in _rows(batch, max_row_bytes):
                        number += 1
                        yield f"row group {group}, row {number}", row
    except (pa.ArrowException, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise DataError(f"{name} is not a whole parquet file: {error}") from error


def _refuse_expansion(group: pq.RowGroupMetaData, name: str, max_expansion: int) -> None:
    """What the file itself says of its sizes is checked before anything is decompressed."""
    for index in range(group.num_columns):
        column = group.column(index)
        if column.total_uncompressed_size > max_expansion * column.total_compressed_size:
            raise _expands(name, max_expansion)


def _expands(name: str, max_expansion: int) -> DataError:
    return DataError(
        f"{name} expands to more than {max_expansion} times its size", "If that is right, raise dataset.max_expansion."
    )


def _rows(batch: pa.RecordBatch, max_row_bytes: int) -> Iterator[dict[str, Any] | BadRow]:
    """The rows of a batch; one by one where one may be too large, or is not UTF-8."""
    if batch.nbytes <= max_row_bytes:
        try:
            yield from map(_without_nulls, batch.to_pylist())
        except UnicodeDecodeError:
            pass
        else:
            return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        try:
            if row.nbytes > max_row_bytes:
                yield BadRow("too_large", f"the row is larger than dataset.max_row_bytes, {max_row_bytes}")
            else:
                yield _without_nulls(row.to_pylist()[0])
        except UnicodeDecodeError as error:
            yield BadRow("not_utf8", f"not UTF-8 at byte {error.start} of a text", excerpt=error.object[:60])


def _without_nulls(value: Any) -> Any:
    """Parquet gives every object every key that any object has; what is null was mostly not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
