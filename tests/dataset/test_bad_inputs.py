"""Every bad input that a dataset can be, by its number: what becomes of it, and that the message says where.

21 to 27 are about objects in a store and are tested with it.
"""

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from job.contract.errors import ConfigError, DataError
from job.dataset.prepared import Prepared
from job.dataset.tokenizer import load_tokenizer
from tests.dataset.conftest import DAY, FAMILIES, write_tokenizer

PrepareRows = Callable[..., Prepared]
_BOUND = 600 << 20  # bytes: far below the gigabyte that a file of any size may take


def good(number: int = 0) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": f"{number} is a number."},
        ]
    }


def lines(rows: Iterable[Any]) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def refused(prepare_rows: PrepareRows, tmp_path: Path) -> Callable[..., str]:
    """`refused(bytes, name)`: the message of the DataError that a file of these bytes ends with."""

    def refused(content: bytes, name: str = "train.jsonl", **settings: Any) -> str:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError) as raised:
            prepare_rows(path, **settings)
        assert name in raised.value.message or "rows" in raised.value.message
        assert not (tmp_path / "train.arrow").exists()
        return raised.value.message

    return refused


@pytest.fixture
def rejected(prepare_rows: PrepareRows, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """`rejected(row)`: how rejects.jsonl tells of the one bad row among good ones, which are kept."""

    def rejected(row: Any, **settings: Any) -> dict[str, str]:
        path = tmp_path / "train.jsonl"
        path.write_bytes(lines([good(1), row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n", good(2)]))
        prepared = prepare_rows(path, max_bad_rows=1, **settings)
        assert prepared.train.rows == 2
        (told,) = (tmp_path / "rejects.jsonl").read_text().splitlines()
        found: dict[str, str] = json.loads(told)
        assert prepared.train.bad == {found["reason"]: 1}
        assert (found["file"], found["where"]) == ("train.jsonl", "line 2")
        assert "1 bad train rows are left out" in prepared.warnings
        with pytest.raises(DataError, match=f"1 of 3 rows are bad.*1 {found['reason']}\n  train.jsonl, line 2"):
            prepare_rows(path, max_bad_rows=0, **settings)
        return found

    return rejected


_READ = """
import json, pathlib, resource, sys
from job.contract.errors import DataError
from job.dataset.rejects import BadRow
from job.dataset.rows import read_rows
path = pathlib.Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows, bad, error = 0, [], None
try:
    for where, row in read_rows(path, path.name, 1 << 24, int(sys.argv[2])):
        rows += 1
        if isinstance(row, BadRow):
            bad.append((where, row.reason))
except DataError as raised:
    error = raised.message
print(json.dumps([rows, bad, error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def read_alone(path: Path, max_expansion: int = 200) -> tuple[int, list[list[str]], str | None]:
    """Rows, bad rows and error of a file, read in a process whose memory is watched."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, path, str(max_expansion)],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    rows, bad, error, kilobytes = json.loads(done.stdout)
    assert kilobytes * 1024 < _BOUND
    return rows, bad, error


# Files


def test_bad_input_01_empty(refused: Callable[..., str]) -> None:
    assert refused(b"") == "train.jsonl is empty"
    assert "empty" in refused(b"\xef\xbb\xbf")
    assert "empty" in refused(gzip.compress(b""), "train.jsonl.gz")


def test_bad_input_02_white_space_only(refused: Callable[..., str]) -> None:
    assert refused(b" \n\r\n\t\n" * 9) == "train.jsonl holds nothing but white space"


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.csv"])
def test_bad_input_03_utf8_bom_is_accepted(prepare_rows: PrepareRows, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    content = {"jsonl": lines([good()]), "json": json.dumps([good()]).encode(), "csv": b"prompt,completion\nHello,Hi\n"}
    path.write_bytes(b"\xef\xbb\xbf" + content[name.partition(".")[2]])
    assert prepare_rows(path).train.rows == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_bad_input_04_utf16(refused: Callable[..., str], encoding: str) -> None:
    assert "UTF-" in refused(lines([good()]).decode().encode(encoding))


def test_bad_input_05_bad_utf8(rejected: Callable[..., dict[str, str]], refused: Callable[..., str]) -> None:
    found = rejected(lines([good()]).replace(b"What", b"Wh\xff\xfet"))
    assert found["reason"] == "not_utf8"
    assert "byte 45" in found["message"]
    assert "UTF-8" in refused(b'[{"messages": "\xff"}]', "train.json")
    assert "line 2: not UTF-8 at byte 1" in refused(b"prompt,completion\na\xff,b\n", "train.csv")


def test_bad_input_06_nul_byte(rejected: Callable[..., dict[str, str]]) -> None:
    found = rejected(lines([good()]).replace(b"What", b"Wh\x00t"))
    assert found["reason"] == "not_json"
    assert "NUL" in found["message"]


def test_bad_input_07_crlf_is_accepted(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines([good(1)]) + b"\r\n" + lines([good(2)]).replace(b"\n", b"\r\n") + lines([good(3)]).rstrip())
    assert prepare_rows(path).train.rows == 3
    path = tmp_path / "train.csv"
    path.write_bytes(b'prompt,completion\r\n"two\r\nlines",Hi\r\n')
    prepared = prepare_rows(path)
    assert "two\r\nlines" in prepared.shown[0].text


def test_bad_input_08_last_line_cut(prepare_rows: PrepareRows, tmp_path: Path, refused: Callable[..., str]) -> None:
    whole = lines([good(1), good(2)])
    path = tmp_path / "train.jsonl"
    path.write_bytes(whole[:-20])
    prepared = prepare_rows(path, max_bad_rows=1)
    assert prepared.train.bad == {"cut_off": 1}
    assert "line 2: the file ends in the middle of this row" in str(prepared.rejects[0])
    assert "the file ends in the middle" in refused(json.dumps([good(1), good(2)]).encode()[:-20], "train.json")
    assert "item 2 of its array: the file ends before it" in refused(
        lines([[good(1)]]).rstrip(b"]\n") + b",", "train.json"
    )
    assert "after item 1" in refused(lines([[good(1)]]).rstrip(b"]\n"), "train.json")
    assert "line 2: not CSV: unexpected end of data" in refused(b'prompt,completion\na,"b', "train.csv")
    rows = [good(random.Random(number).randrange(10**12)) for number in range(2000)]
    assert "cut off" in refused(gzip.compress(lines(rows))[:-99], "train.jsonl.gz")
    assert "cut off" in refused(zstandard.compress(lines(rows))[:-99], "train.jsonl.zst")


def test_bad_input_09_json_array_is_accepted(
    prepare_rows: PrepareRows, tmp_path: Path, refused: Callable[..., str]
) -> None:
    for name, indent in (("a.json", None), ("b.jsonl", 2)):
        path = tmp_path / name
        path.write_text(json.dumps([good(number) for number in range(3)], indent=indent))
        assert prepare_rows(path).train.rows == 3
    assert refused(b"[]", "train.json") == "train.json holds no rows"
    assert "more follows the end of its array" in refused(json.dumps([good()]).encode() * 2, "train.json")
    assert "item 1" in refused(b"[1 2]", "train.json")
    assert "item 2" in refused(lines([[good()]]).replace(b"]\n", b", {]"), "train.json")


def test_bad_input_10_duplicate_keys(rejected: Callable[..., dict[str, str]], refused: Callable[..., str]) -> None:
    inner = lines([good()]).replace(b'"role": "user"', b'"role": "user", "role": "system"')
    assert rejected(inner)["excerpt"] == "role"
    assert rejected(b'{"messages": [], "messages":' + lines([good()])[12:])["reason"] == "duplicate_key"
    assert rejected(lines([good() | {"note": 'a "key": twice, "key": twice'}]).replace(b"note", b"messages"))["reason"]
    assert "item 1" in refused(b"[" + inner + b"]", "train.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_bad_input_11_nan(rejected: Callable[..., dict[str, str]], number: str) -> None:
    found = rejected(lines([good() | {"score": 0}]).replace(b": 0}", f": {number}}}".encode()))
    assert found["message"] == f"{number} is not JSON: write null"


def test_bad_input_12_ten_thousand_levels(rejected: Callable[..., dict[str, str]], refused: Callable[..., str]) -> None:
    deep = b"[" * 10_000 + b"]" * 10_000
    row = b'{"messages": ' + deep + b"}"
    assert rejected(row + b"\n")["message"] == "nested too deeply"
    assert "nested too deeply" in refused(b"[" + row + b"]", "train.json")


@pytest.mark.parametrize("depth", [300, *range(900, 1040, 20)])
def test_nesting_near_the_limits_of_the_parsers(prepare_rows: PrepareRows, tmp_path: Path, depth: int) -> None:
    path = tmp_path / "train.jsonl"
    nested = ("[" * depth + "]" * depth).encode()
    call = b'"tool_calls": [{"name": "f", "arguments": {"a": ' + nested + b"}}]}]}"
    rows = [
        b'{"a": ' + nested + b", " + lines([good()])[1:],
        lines([good()]).replace(b"}]}\n", b", " + call),
        lines([good(1)]),
    ]
    rows += [b'{"messages": [{"role": "user", "content": ' + nested + b"}]}\n"]
    path.write_bytes(rows[0] + rows[1] + b"\n" + rows[2] + rows[3])
    prepared = prepare_rows(path, max_bad_rows=3)
    assert set(prepared.train.bad) <= {"not_json", "bad_tools", "bad_content"}
    assert prepared.train.rows >= 1


def test_bad_input_13_one_200_mb_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with path.open("wb") as file:
        file.write(lines([good(1)]) + b'{"messages": "')
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n' + lines([good(2)]))
    assert read_alone(path) == (3, [["line 2", "too_large"]], None)
    path.rename(array := tmp_path / "array.json")
    with array.open("r+b") as file:
        file.write(b"[")
    _, _, error = read_alone(array)
    assert error == "array.json, item 1 of its array: larger than dataset.max_row_bytes, 16777216" or "item" in str(
        error
    )


def test_bad_input_14_row_not_an_object(rejected: Callable[..., dict[str, str]], refused: Callable[..., str]) -> None:
    for row in (5, "text", None, [1, 2]):
        assert rejected(row)["reason"] == "not_an_object"
    assert "begins with b'5" in refused(b"5\n" + lines([good()]))


def test_bad_input_15_lone_surrogate(rejected: Callable[..., dict[str, str]]) -> None:
    found = rejected(lines([good()]).replace(b"What", b"Wh\\ud800t"))
    assert found["reason"] == "not_json"
    assert "half a character" in found["message"]


@pytest.mark.parametrize("digits", [400, 5000])
def test_bad_input_16_huge_integer(rejected: Callable[..., dict[str, str]], digits: int) -> None:
    found = rejected(lines([good() | {"score": 1}]).replace(b": 1}", b": 1" + b"0" * digits + b"}"))
    assert found["message"] == "a number is too large"


def test_bad_input_17_gz_that_is_not_gzip(refused: Callable[..., str]) -> None:
    assert (
        refused(lines([good()]), "train.jsonl.gz")
        == "train.jsonl.gz is not what its name says: not .gz but not compressed"
    )
    assert "but zstd" in refused(zstandard.compress(lines([good()])), "train.jsonl.gz")
    assert "but compressed by gzip" in refused(gzip.compress(lines([good()])), "train.jsonl")
    assert "damaged or cut off" in refused(b"\x1f\x8b" + b"no gzip at all" * 9, "train.jsonl.gz")


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_bad_input_18_compressed_bomb(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"train.jsonl.{compression}"
    zeros = b"0" * (1 << 20)
    with path.open("wb") as file:
        if compression == "gz":
            with gzip.GzipFile(fileobj=file, mode="wb") as out:
                out.write(lines([good()]))
                for _ in range(256):
                    out.write(zeros)
        else:
            with zstandard.ZstdCompressor().stream_writer(file) as out:
                out.write(lines([good()]))
                for _ in range(2000):
                    out.write(zeros)
    _, _, error = read_alone(path)
    assert error == f"{path.name} expands to more than 200 times its size"


def test_bad_input_19_parquet_with_bad_footer(refused: Callable[..., str], tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([good(number) for number in range(99)]), tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    for damaged in (
        whole[:-9],
        whole[: len(whole) // 2],
        whole[:-8] + b"\xff\xff\xff\x7fPAR1",
        b"PAR1",
        b"PAR1PAR1PAR1",
    ):
        assert "not a whole parquet file" in refused(damaged, "train.parquet")


def test_bad_input_20_parquet_bomb(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    value = "".join(random.Random(1).choices("abcdefghijklmnop", k=1 << 20))
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), pa.array([value]))
    table = pa.table({"prompt": column, "completion": column})
    pq.write_table(table, path, compression="none", store_schema=False)
    assert path.stat().st_size < 20 << 20
    rows, _, error = read_alone(path, max_expansion=20)
    assert error == "train.parquet expands to more than 20 times its size"
    assert rows < 1000
    pq.write_table(pa.table({"prompt": ["a" * (100 << 20)], "completion": ["b"]}), path, compression="zstd")
    _, _, error = read_alone(path)
    assert error == "train.parquet expands to more than 200 times its size"


def test_archives_and_strangers_are_refused(refused: Callable[..., str]) -> None:
    for start, what in (
        (b"PK\x03\x04rest of it", "zip archive"),
        (b"<html><title>403 Forbidden", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"ARROW1\0\0", "Arrow"),
        (b"train/a.jsonl".ljust(257, b"\0") + b"ustar\x0000", "tar archive"),
    ):
        assert what in refused(start)
        assert what in refused(gzip.compress(start), "train.jsonl.gz")


def test_names_must_not_promise_something_else(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "not .parquet but json lines" in refused(lines([good()]), "train.parquet")
    assert "not .csv but json lines" in refused(lines([good()]), "train.csv")
    pq.write_table(pa.Table.from_pylist([good()]), tmp_path / "good.parquet")
    assert "not .jsonl but parquet" in refused((tmp_path / "good.parquet").read_bytes(), "train.jsonl")
    assert "neither JSON nor parquet" in refused(b"instruction,output\na,b\n", "train.jsonl")


# Rows


@pytest.mark.parametrize(
    ("messages", "reason"),
    [(None, "no_messages"), ([], "no_messages"), ("hello", "no_messages"), ([None], "bad_message")],
)
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_bad_input_28_messages(rejected: Callable[..., dict[str, str]], messages: Any, reason: str, key: str) -> None:
    found = rejected({key: messages})
    assert found["reason"] == reason
    assert found["field"].startswith(key)
    assert rejected({"text": "hello"})["reason"] == "unknown_format"


def test_bad_input_29_unknown_role(rejected: Callable[..., dict[str, str]]) -> None:
    row = good()
    row["messages"][1]["role"] = "narrator"
    found = rejected(row)
    assert (found["reason"], found["field"], found["excerpt"]) == ("unknown_role", "messages[1].role", "narrator")
    row["messages"][1]["role"] = 7
    assert rejected(row)["reason"] == "unknown_role"


@pytest.mark.parametrize(
    ("roles", "where"),
    [
        ("au", 0),
        ("uua", 1),
        ("uaa", 2),
        ("usa", 1),
        ("uasua", 2),
        ("ssua", 1),
        ("sau", 1),
        ("tua", 0),
        ("uta", 1),
        ("uatu", 3),
    ],
)
def test_bad_input_30_wrong_order(rejected: Callable[..., dict[str, str]], roles: str, where: int) -> None:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    found = rejected({"messages": [{"role": names[role], "content": "text"} for role in roles]})
    assert (found["reason"], found["field"]) == ("wrong_order", f"messages[{where}]")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "bad_content"),
        (7, "bad_content"),
        ({}, "bad_content"),
        ([], "bad_content"),
        ([7], "bad_content"),
        ([{"type": "text"}], "bad_content"),
        ([{"type": "image_url", "image_url": "x"}], "not_text"),
    ],
)
def test_bad_input_31_content(rejected: Callable[..., dict[str, str]], content: Any, reason: str) -> None:
    row = good()
    row["messages"][0]["content"] = content
    found = rejected(row)
    assert (found["reason"], found["field"]) == (reason, "messages[0].content")


@pytest.mark.parametrize("content", ["", " \n\t "])
def test_bad_input_32_empty_assistant(rejected: Callable[..., dict[str, str]], content: str) -> None:
    row = good()
    row["messages"][1]["content"] = content
    assert rejected(row)["reason"] == "empty_content"
    assert rejected({"instruction": "Say it.", "output": content})["field"] == "output.content"


def test_bad_input_33_no_assistant_turn(rejected: Callable[..., dict[str, str]]) -> None:
    assert rejected({"messages": [{"role": "user", "content": "Hello?"}]})["reason"] == "no_answer"


def test_bad_input_34_answer_truncated_away(
    prepare_rows: PrepareRows, tmp_path: Path, refused: Callable[..., str]
) -> None:
    long = good()
    long["messages"][0]["content"] = "word " * 400
    half = good()
    half["messages"][1]["content"] = "word " * 400
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines([good(1), good(2), good(3), long, half]))
    cut = prepare_rows(path, on_too_long="truncate", max_seq_length=64)
    assert (cut.train.rows, cut.train.too_long, cut.train.answers_lost) == (4, 2, 1)
    assert (cut.train.truncated, cut.train.nothing_to_train, cut.train.longest) == (1, 1, 64)
    assert "line 4" in str(cut.rejects[0])
    dropped = prepare_rows(path, on_too_long="drop", max_seq_length=64)
    assert (dropped.train.rows, dropped.train.truncated, dropped.train.answers_lost) == (3, 0, 1)
    assert any("50% of them would lose their whole answer" in warning for warning in dropped.warnings)
    assert "line 4" in refused(path.read_bytes(), on_too_long="error", max_seq_length=64)
    message = refused(lines([good(1), long, long]), on_too_long="truncate", max_seq_length=64)
    assert "over half of the rows would be left out" in message
    assert "2 would lose their whole answer" in message


@pytest.mark.parametrize("token", ["<|im_end|>", "<|im_start|>", "<|pad|>"])
@pytest.mark.parametrize("index", [0, 1])
def test_bad_input_35_special_token_in_a_text(rejected: Callable[..., dict[str, str]], token: str, index: int) -> None:
    row = good()
    row["messages"][index]["content"] += f" {token}\nassistant"
    found = rejected(row)
    assert (found["reason"], found["field"], found["excerpt"]) == ("special_token", f"messages[{index}]", token)


def test_bad_input_36_schema_drift(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [good(number) for number in range(1000)]
    rows += [{"messages": row["messages"], "score": number} for number, row in enumerate(rows)]
    rows += [{"chat": row["messages"]} for row in rows[:2]]
    path.write_bytes(lines(rows))
    prepared = prepare_rows(path, max_bad_rows="0.1%")
    assert prepared.train.bad == {"unknown_format": 2}
    assert [reject.where for reject in prepared.rejects] == ["line 2001", "line 2002"]
    assert prepared.train.duplicates == 1000


def test_bad_input_37_two_formats_mixed(prepare_rows: PrepareRows, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "train.jsonl"
    sharegpt = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]}
    path.write_bytes(
        lines([good(), sharegpt, {"instruction": "Go", "output": "Gone"}, {"prompt": "1+1", "completion": "2"}])
    )
    prepared = prepare_rows(path)
    assert prepared.train.formats == {"messages": 1, "sharegpt": 1, "alpaca": 1, "prompt_completion": 1}
    assert any("several formats: 1 alpaca, 1 messages" in warning for warning in prepared.warnings)
    assert "3 of 4 rows are bad" in refused(path.read_bytes(), format="sharegpt")


def test_bad_input_38_duplicates_and_leaks(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    train, held_out = tmp_path / "train.jsonl", tmp_path / "eval.jsonl"
    train.write_bytes(lines([good(number // 2) for number in range(20)]))
    held_out.write_bytes(lines([good(3), good(100), good(3)]))
    prepared = prepare_rows(train, eval=[held_out])
    assert prepared.eval is not None
    assert (prepared.train.duplicates, prepared.overlap, prepared.eval.duplicates) == (10, 2, 1)
    assert any("10 of 20 train rows are duplicates" in warning for warning in prepared.warnings)
    assert any("2 of 3 eval rows are in train" in warning for warning in prepared.warnings)
    assert prepare_rows(train, eval=0.3).overlap == 0  # equal rows fall on one side


def test_bad_input_39_fewer_rows_than_one_batch(refused: Callable[..., str]) -> None:
    training = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    message = refused(lines([good(number) for number in range(7)]), training=training)
    assert message.startswith("7 rows to train on are less than one batch of 8")


# Base models


def test_bad_input_53_no_chat_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, FAMILIES["chatml"])
    with pytest.raises(ConfigError, match="no chat template, and chat_template is null") as raised:
        load_tokenizer(tmp_path, None, DAY)
    assert "llama-3.1" in raised.value.resolution


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ 'x' * 99999999999 }}",
        "{% set n = namespace(x='xx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{{ 'x' * 3000000 }}",
        "{% if %}",
        "nothing of the chat",
        "{{ '\\ud800' }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    ],
)
def test_bad_input_54_hostile_template(tmp_path: Path, template: str) -> None:
    write_tokenizer(tmp_path, FAMILIES["chatml"], template)
    with pytest.raises(DataError, match="chat_template cannot be used as a chat template"):
        load_tokenizer(tmp_path, None, DAY)


def test_bad_input_54_hostile_template_file(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, FAMILIES["chatml"])
    (tmp_path / "mine.jinja").write_text("{{ ''.__class__ }}")
    with pytest.raises(DataError, match=r"mine\.jinja cannot be used as a chat template: .*__class__"):
        load_tokenizer(tmp_path, str(tmp_path / "mine.jinja"), DAY)
