import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from job.contract.errors import DataError, LocalIOError
from job.dataset.prepared import Prepared
from job.dataset.preparing import prepare
from job.dataset.tokenizer import Tokenizer
from tests.dataset.conftest import recipe

PrepareRows = Callable[..., Prepared]


def write_rows(path: Path, numbers: range) -> Path:
    rows = [{"prompt": f"What is {number}?", "completion": f"The number {number}."} for number in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(path: Path, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(row["input_ids"]) for row in Dataset.from_file(str(path))]


def test_the_trainer_gets_the_rows_in_their_order(prepare_rows: PrepareRows, chatml: Tokenizer, tmp_path: Path) -> None:
    one, two = write_rows(tmp_path / "one.jsonl", range(700)), write_rows(tmp_path / "two.jsonl", range(700, 710))
    prepared = prepare_rows(one, two)
    rows = Dataset.from_file(str(tmp_path / "train.arrow"))
    assert rows.cache_files  # mapped, not loaded
    assert str(rows.features["input_ids"].feature.dtype) == str(rows.features["labels"].feature.dtype) == "int32"
    assert len(rows) == prepared.train.rows == prepared.train.read == 710
    assert [f"The number {number}." in text for number, text in enumerate(texts(tmp_path / "train.arrow", chatml))] == [
        True
    ] * 710
    labels = [label for row in rows["labels"] for label in row]
    assert prepared.train.tokens == len(labels)
    assert prepared.train.trained_tokens == sum(label != -100 for label in labels)
    assert sum(prepared.train.lengths.values()) == 710
    assert prepared.train.longest == max(map(len, rows["input_ids"]))
    assert not (tmp_path / "eval.arrow").exists()
    assert (tmp_path / "rejects.jsonl").read_text() == ""


def test_the_first_row_is_shown(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    prepared = prepare_rows(write_rows(tmp_path / "a.jsonl", range(3)))
    assert [(span.text, span.trained) for span in prepared.shown] == [
        ("<|im_start|>user\nWhat is 0?<|im_end|>\n<|im_start|>assistant\n", False),
        ("The number 0.<|im_end|>", True),
        ("\n", False),
    ]


def test_a_share_is_set_apart_by_the_rows_themselves(
    prepare_rows: PrepareRows, chatml: Tokenizer, tmp_path: Path
) -> None:
    prepared = prepare_rows(write_rows(tmp_path / "a.jsonl", range(400)), eval=0.25)
    assert prepared.eval is not None
    assert prepared.train.rows + prepared.eval.rows == 400
    assert 70 <= prepared.eval.rows <= 130
    assert prepared.overlap == 0
    held_out = set(texts(tmp_path / "eval.arrow", chatml))
    assert held_out.isdisjoint(texts(tmp_path / "train.arrow", chatml))
    prepare_rows(write_rows(tmp_path / "more.jsonl", range(800)), eval=0.25)
    assert held_out == {
        text for text in texts(tmp_path / "eval.arrow", chatml) if any(f"is {n}?" in text for n in range(400))
    }
    prepare_rows(write_rows(tmp_path / "a.jsonl", range(400)), eval=0.25, training={"seed": 7})
    assert held_out != set(texts(tmp_path / "eval.arrow", chatml))
    with pytest.raises(DataError, match="the eval split has no rows"):
        prepare_rows(write_rows(tmp_path / "a.jsonl", range(3)), eval=0.0001)


def test_a_check_writes_nothing(chatml: Tokenizer, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", range(9))
    checked = prepare([path], 0.3, recipe(), chatml, None, name_of=str)
    assert list(tmp_path.iterdir()) == [path]
    out = tmp_path / "out"
    out.mkdir()
    assert prepare([path], 0.3, recipe(), chatml, out, name_of=str) == checked


def test_progress_adds_up(chatml: Tokenizer, tmp_path: Path) -> None:
    told: list[int] = []
    path = write_rows(tmp_path / "a.jsonl", range(1500))
    with path.open("a") as file:
        file.write("{}\n")
    prepare([path], None, recipe(max_bad_rows=1), chatml, None, progress=told.append)
    assert sum(told) == 1501
    assert len(told) > 1


@pytest.mark.parametrize(
    ("allowed", "stops"), [(0, True), (2, True), (3, False), ("2%", True), ("3%", False), ("2.9%", True)]
)
def test_so_many_bad_rows_are_left_out(prepare_rows: PrepareRows, tmp_path: Path, allowed: Any, stops: bool) -> None:
    path = write_rows(tmp_path / "a.jsonl", range(97))
    with path.open("a") as file:
        file.write("{}\n[]\n{\n")
    if stops:
        with pytest.raises(DataError, match="3 of 100 rows are bad") as raised:
            prepare_rows(path, max_bad_rows=allowed)
        assert "a.jsonl, line 98" in raised.value.message
        return
    prepared = prepare_rows(path, max_bad_rows=allowed)
    assert prepared.train.rows == 97
    assert prepared.train.bad == {"unknown_format": 1, "not_an_object": 1, "not_json": 1}
    assert [reject.where for reject in prepared.rejects] == ["line 98", "line 99", "line 100"]


def test_a_share_is_of_all_rows_wherever_the_bad_ones_are(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", range(1000))
    path.write_text("{}\n" * 10 + path.read_text())
    assert prepare_rows(path, max_bad_rows="1%").train.rows == 1000


def test_every_bad_row_is_counted_and_ten_thousand_are_written(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", range(10))
    with path.open("a") as file:
        file.write("{}\n" * 10_500)
    with pytest.raises(DataError, match="10500 of 10510 rows are bad"):
        prepare_rows(path)
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 10_000


def test_half_of_the_rows_may_be_dropped_but_no_more(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b " * (1 if number % 2 else 300)} for number in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare_rows(path, max_seq_length=64)
    assert (prepared.train.rows, prepared.train.too_long, prepared.train.answers_lost) == (10, 10, 0)
    with path.open("a") as file:
        file.write(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match="over half of the rows would be left out: 11 of 21 train rows have more than"):
        prepare_rows(path, max_seq_length=64)


def test_rows_of_weight_0_have_nothing_to_train_on(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", range(3))
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]
    with path.open("a") as file:
        file.write(json.dumps({"messages": messages}) + "\n")
    prepared = prepare_rows(path)
    assert (prepared.train.rows, prepared.train.nothing_to_train) == (3, 1)
    assert prepared.rejects[0].reason == "nothing_to_train"
    assert "1 train rows have nothing to train on and are left out" in prepared.warnings


def test_a_batch_counts_all_devices(chatml: Tokenizer, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", range(7))
    training = {"per_device_train_batch_size": 2}
    assert prepare([path], None, recipe(training=training), chatml, None, gpus=3).train.rows == 7
    with pytest.raises(DataError, match=r"7 rows .* one batch of 8: .* 4 device"):
        prepare([path], None, recipe(training=training), chatml, None, gpus=4)


def test_what_an_earlier_start_left_does_not_outlive_a_failure(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    prepare_rows(write_rows(tmp_path / "a.jsonl", range(3)))
    assert (tmp_path / "train.arrow").exists()
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(DataError):
        prepare_rows(tmp_path / "a.jsonl")
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "rejects.jsonl"}


def test_a_disk_that_fails_is_told_as_such(chatml: Tokenizer, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", range(3))
    with pytest.raises(LocalIOError, match="No such file or directory"):
        prepare([path], None, recipe(), chatml, tmp_path / "gone")
    with pytest.raises(LocalIOError, match=r"gone\.jsonl"):
        prepare([tmp_path / "gone.jsonl"], None, recipe(), chatml, None)


def test_the_rows_file_is_an_arrow_stream(prepare_rows: PrepareRows, tmp_path: Path) -> None:
    prepare_rows(write_rows(tmp_path / "a.jsonl", range(3)))
    with pa.OSFile(str(tmp_path / "train.arrow"), "rb") as file, pa.ipc.open_stream(file) as stream:
        assert stream.read_all().num_rows == 3
