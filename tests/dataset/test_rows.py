import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from job.contract.errors import DataError
from job.dataset.json_rows import parse_row
from job.dataset.rejects import BadRow
from job.dataset.rows import read_rows

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
_OBJECTS = st.dictionaries(st.text(), _JSON, max_size=4)


def read(path: Path, max_row_bytes: int = 1 << 20) -> list[Any]:
    return [row for _, row in read_rows(path, path.name, max_row_bytes, 200)]


def read_or_error(path: Path) -> list[Any] | DataError:
    try:
        return read(path)
    except DataError as error:
        return error


def parse_or_bad(line: bytes) -> dict[str, Any] | BadRow:
    try:
        return parse_row(line)
    except BadRow as bad:
        return bad


def _strict(text: str) -> tuple[Any, bool]:
    """What Python's parser makes of a text, and whether a key is given twice."""
    twice = []

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice.append(len(dict(pairs)) < len(pairs))
        return dict(pairs)

    return json.loads(text, object_pairs_hook=to_dict), any(twice)


@given(st.binary() | st.text().map(str.encode) | _JSON.map(lambda value: json.dumps(value).encode()))
@example(b'{"a": 1, "a": 2}')
@example(b'{"a" : 1, "a" : 2}')
@example(b'{"\\"": "\\":", "b\\\\": "b\\\\"}')
@example(b'{"a": "\\ud800"}')
@example(b"{" * 5000)
@example(b'{"a": ' + b"1" * 5000 + b"}")
def test_any_line_is_an_object_or_a_bad_row(line: bytes) -> None:
    row = parse_or_bad(line)
    if isinstance(row, BadRow):
        assert row.message
    else:
        assert (row, False) == _strict(line.decode())


@given(_OBJECTS)
def test_any_object_is_read_as_it_is(row: dict[str, Any]) -> None:
    expected = json.loads(
        json.dumps(row), parse_int=lambda digits: int(digits) if abs(int(digits)) < 1 << 63 else float(digits)
    )
    assert parse_row(json.dumps(row).encode()) == expected
    assert parse_row(json.dumps(row, ensure_ascii=False, indent=1).replace("\n", " ").encode()) == expected


@given(
    st.binary() | st.lists(_OBJECTS.map(json.dumps), max_size=3).map(lambda rows: "\n".join(rows).encode()),
    st.sampled_from(["plain", "gzip", "zstd", "cut"]),
    st.sampled_from(["a", "a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.csv.zst"]),
)
@example(b"PAR1PAR1", "plain", "a")
@example(b"[1, 2", "plain", "a.json")
@example(b'a,b\n"', "plain", "a.csv")
@example(b"[" + b"[" * 9999, "plain", "a")
def test_any_bytes_are_rows_or_a_data_error(content: bytes, how: str, name: str) -> None:
    packs: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress}
    pack = packs.get(how, bytes)
    packed = pack(content)
    with TemporaryDirectory() as directory:
        path = Path(directory, name)
        path.write_bytes(packed[: -len(packed) // 2] if how == "cut" else packed)
        rows = read_or_error(path)
    if isinstance(rows, DataError):
        assert name in rows.message
    else:
        assert all(isinstance(row, dict | BadRow) for row in rows)


@given(st.lists(_OBJECTS, min_size=1, max_size=5), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_an_array_is_the_same_as_lines(rows: list[dict[str, Any]], indent: Any, escaped: bool) -> None:
    with TemporaryDirectory() as directory:
        array, lines = Path(directory, "a.json"), Path(directory, "a.jsonl")
        array.write_text(json.dumps(rows, indent=indent, ensure_ascii=escaped), "utf-8")
        lines.write_text("\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows), "utf-8")
        assert read(array) == read(lines)


def test_an_array_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    chance = random.Random(3)
    rows = [{"text": "".join(chance.choices("aü漢🙂\n", k=chance.randint(0, 20_000)))} for _ in range(300)]
    rows += [{"text": "x" * (3 << 20)}, {"text": "last"}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    assert path.stat().st_size > 6 << 20
    assert read(path, 4 << 20) == rows


ROWS = [
    {"prompt": f"Say {number}", "completion": f'"{number}", he said\nand ü 漢', "tools": None if number % 2 else "[]"}
    for number in range(100)
]


def _write_csv(path: Path) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=2)),
    "a.csv": _write_csv,
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=30),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str, compression: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    if compression:
        packed = (gzip.compress if compression == ".gz" else zstandard.compress)(path.read_bytes())
        path = tmp_path / f"{name}{compression}"
        path.write_bytes(packed)
    if name == "a.parquet" and compression:
        with pytest.raises(DataError, match="parquet"):
            read(path)
        return
    found = [{key: value for key, value in row.items() if value is not None} for row in read(path)]
    wanted = [{key: value for key, value in row.items() if value is not None} for row in ROWS]
    for row in found:
        row["tools"] = "[]" if row.get("tools") == [] else row.get("tools")
    assert [{key: value for key, value in row.items() if value is not None} for row in found] == wanted


def test_where_a_row_is(tmp_path: Path) -> None:
    places = {}
    for name, write in WRITERS.items():
        write(tmp_path / name)
        places[name] = [where for where, _ in read_rows(tmp_path / name, name, 1 << 20, 200)]
    assert places["a.jsonl"][1] == "line 2"
    assert places["a.json"][1] == "item 2"
    assert places["a.csv"][1] == "line 4"  # each record has a line break in it
    assert places["a.parquet"][31] == "row group 1, row 2"


def test_parquet_nulls_are_left_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
            ]
        },
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert read(path)[1]["messages"][1] == {"role": "assistant", "content": "b"}


def test_parquet_without_a_known_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(DataError, match="it has text"):
        read(path)


def test_csv_records_of_another_width(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,completion\na,b\na\n\na,b,c\n")
    kinds = [(where, isinstance(row, BadRow)) for where, row in read_rows(path, "a.csv", 99, 200)]
    assert kinds == [("line 2", False), ("line 3", True), ("line 5", True)]
    path.write_text("messages\n[1\n")
    assert [row.reason for row in read(path)] == ["not_json"]
