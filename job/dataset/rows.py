"""Rows out of a file of any kind, one at a time, in bounded memory."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from job.contract.errors import DataError
from job.dataset.files import kind_of, open_stream
from job.dataset.json_rows import parse_row
from job.dataset.parquet_rows import read_parquet
from job.dataset.rejects import BadRow

Read = tuple[str, dict[str, Any] | BadRow]
"""Where a row is, and the row; or why it is none."""

_CHUNK_BYTES = 1 << 20
_JSON_COLUMNS = ("messages", "conversations", "conversation", "tools")


def read_rows(path: Path, name: str, max_row_bytes: int, max_expansion: int) -> Iterator[Read]:
    """The rows of a file, in order.

    Args:
        path: the file.
        name: what the user calls it.
        max_row_bytes: a larger row is a bad one.
        max_expansion: how many times its own size a compressed file may expand to.

    Raises:
        DataError: the file cannot be read on from some point.
    """
    kind = kind_of(path, name, max_expansion)
    if kind == "parquet":
        yield from read_parquet(path, name, max_row_bytes, max_expansion)
        return
    with open_stream(path, name, max_expansion) as stream:
        match kind:
            case "json lines":
                yield from _json_lines(stream, max_row_bytes)
            case "json array":
                yield from _json_array(stream, name, max_row_bytes)
            case "csv":
                yield from _csv(stream, name, max_row_bytes)


def _json_lines(stream: io.BufferedReader, max_row_bytes: int) -> Iterator[Read]:
    for number, line in enumerate(iter(lambda: stream.readline(max_row_bytes + 2), b""), 1):
        ended = line.endswith(b"\n")
        if len(line.rstrip(b"\r\n")) > max_row_bytes:
            while not ended and (rest := stream.readline(_CHUNK_BYTES)):
                ended = rest.endswith(b"\n")
            yield f"line {number}", _too_large(max_row_bytes, line)
        elif not line.isspace():
            yield f"line {number}", _parsed(line, last=not ended)


def _parsed(text: bytes, last: bool = False) -> dict[str, Any] | BadRow:
    try:
        return parse_row(text, last)
    except BadRow as bad:
        return bad


def _too_large(max_row_bytes: int, start: object) -> BadRow:
    return BadRow("too_large", f"the row is larger than dataset.max_row_bytes, {max_row_bytes}", excerpt=start)


def _json_array(stream: io.BufferedReader, name: str, max_row_bytes: int) -> Iterator[Read]:
    """The items of an array. Python's decoder finds where an item ends, `parse_row` judges it as any line."""
    window = _Window(stream, name)
    window.skip("[")
    number = 0
    while not window.skip("]"):
        number += 1
        if number > 1 and not window.skip(","):
            raise DataError(f"{name}, after item {number - 1} of its array: a comma or the closing bracket is missing")
        item = window.item(number, max_row_bytes)
        yield f"item {number}", _parsed(item.encode())
    if not window.at_end():
        raise DataError(f"{name}: more follows the end of its array", "Write one array, or one object a line.")


class _Window:
    """The part of a text that is being read."""

    def __init__(self, stream: io.BufferedReader, name: str) -> None:
        self._stream, self._name = stream, name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._position, self._ended = "", 0, False

    def skip(self, character: str) -> bool:
        """Go past white space, and past the character where it comes next; whether it did."""
        found = not self.at_end() and self._text[self._position] == character
        self._position += found
        return found

    def at_end(self) -> bool:
        """Go past white space; whether nothing follows."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._text):
                return False
            if self._ended:
                return True
            self._grow()

    def item(self, number: int, max_bytes: int) -> str:
        """The text of the JSON value that comes next."""
        where = f"{self._name}, item {number} of its array"
        if self.at_end():
            raise DataError(f"{where}: the file ends before it")
        while True:
            try:
                _, end = self._scan(self._text, self._position)
            except json.JSONDecodeError as error:
                if len(self._text) - self._position > max_bytes:
                    raise DataError(f"{where}: larger than dataset.max_row_bytes, {max_bytes}") from error
                if self._ended:
                    cut_off = error.pos >= len(self._text.rstrip()) or error.msg.startswith("Unterminated")
                    what = "the file ends in the middle of it" if cut_off else f"it is not JSON: {error.msg}"
                    raise DataError(f"{where}: {what}") from error
            except (RecursionError, ValueError) as error:  # ValueError: an integer of more than 4,300 digits
                raise DataError(f"{where}: nested too deeply, or a number is too large") from error
            else:
                if end < len(self._text) or self._ended:  # a number at the end of the window may go on
                    item, self._position = self._text[self._position : end], end
                    return item
            self._grow()

    def _grow(self) -> None:
        """Read on, twice as far when one item needs it."""
        self._text, self._position = self._text[self._position :], 0
        piece = self._stream.read(max(_CHUNK_BYTES, len(self._text)))
        self._ended = not piece
        try:
            self._text += self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            raise DataError(f"{self._name} is not UTF-8 near byte {self._stream.tell()}") from error


def _csv(stream: io.BufferedReader, name: str, max_row_bytes: int) -> Iterator[Read]:
    """The records of a CSV file with a header. An empty cell is none; cells that hold messages are read as JSON."""
    csv.field_size_limit(max_row_bytes)
    reader = csv.reader(_text_lines(stream, name, max_row_bytes), strict=True)
    try:
        header = next(reader)
        if len(set(header)) < len(header):
            raise DataError(f"{name}: two columns have the same name")
        end = reader.line_num
        for cells in reader:
            start, end = end + 1, reader.line_num
            if cells:
                yield f"line {start}", _record(header, cells)
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: not CSV: {error}") from error


def _text_lines(stream: io.BufferedReader, name: str, max_row_bytes: int) -> Iterator[str]:
    for number, line in enumerate(iter(lambda: stream.readline(max_row_bytes + 2), b""), 1):
        if len(line) > max_row_bytes + 1:
            raise DataError(f"{name}, line {number}: larger than dataset.max_row_bytes, {max_row_bytes}")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{name}, line {number}: not UTF-8 at byte {error.start}") from error


def _record(header: list[str], cells: list[str]) -> dict[str, Any] | BadRow:
    if len(cells) != len(header):
        return BadRow("wrong_columns", f"{len(cells)} cells under {len(header)} columns", excerpt=",".join(cells))
    row: dict[str, Any] = {column: cell or None for column, cell in zip(header, cells, strict=True)}
    for column in _JSON_COLUMNS:
        if row.get(column):
            try:
                row[column] = orjson.loads(row[column])
            except orjson.JSONDecodeError:
                return BadRow("not_json", "the cell is not JSON", column, row[column])
    return row
