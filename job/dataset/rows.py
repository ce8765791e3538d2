"""Rows out of files of any kind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job.dataset.json_rows import parse_row
from job.dataset.rejects import BadRow


def read_rows(path: Path, name: str, max_row_bytes: int, max_expansion: int) -> Iterator[tuple[str, dict[str, Any] | BadRow]]:
    """The rows of a file, each with its place."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield f"line {number}", parse_row(line)
                except BadRow as bad:
                    yield f"line {number}", bad
