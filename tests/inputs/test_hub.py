"""Inputs from a hub, against a small server that answers as the hub's API does."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from job import hub
from job.contract.config import RunConfig
from job.contract.documents import Spec
from job.contract.errors import ConfigError, DataError, JobError, NoInputError, PermissionDenied, UnavailableError
from job.inputs import download_bytes, fetch_base_model, fetch_dataset, freeze
from tests.hub import COMMIT, Hub, serving


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(
        {
            ("model", "org/base"): {
                "config.json": b"{}",
                "tokenizer.json": b"{}",
                "model.safetensors": b"w" * 5000,
                "pytorch_model.bin": b"p" * 5000,
                ".gitattributes": b"x",
                "onnx/model.onnx": b"o" * 5000,
            },
            ("dataset", "org/rows"): {
                "README.md": b"# rows",
                "dataset_infos.json": b"{}",
                "data/train-00000-of-00002.parquet": b"1" * 2000,
                "data/train-00001-of-00002.parquet": b"2" * 20,
                "data/test-00000-of-00001.parquet": b"3" * 20,
            },
            ("dataset", "org/plain"): {"a.jsonl": b"1", "b.jsonl": b"2", "README.md": b"#"},
            ("dataset", "org/coded"): {"coded.py": b"import os", "train.jsonl": b"1"},
            ("dataset", "org/empty"): {"README.md": b"#"},
        }
    ) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield served


def spec_of(train: str | list[str], base: str = "hf://org/base") -> Spec:
    config = {"name": "t", "base_model": base, "dataset": {"train": train}, "training": {"max_steps": 1}}
    return freeze(RunConfig.model_validate(config), None, "0")


@pytest.mark.parametrize(
    ("reference", "files"),
    [
        ("org/rows", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        ("org/rows@v1:test", ["data/test-00000-of-00001.parquet"]),
        ("org/plain", ["a.jsonl", "b.jsonl"]),
    ],
)
def test_a_reference_freezes_its_commit_and_the_files_of_its_split(
    served: Hub, reference: str, files: list[str]
) -> None:
    spec = spec_of(f"hf://{reference}")
    name = reference.partition("@")[0].partition(":")[0]
    assert [file.uri for file in spec.dataset.train] == [f"hf://{name}@{COMMIT}/{file}" for file in files]
    assert spec.base_model.commit == COMMIT
    assert {token for _, token in served.asked} == {"Bearer hf_test"}


def test_what_was_frozen_is_what_is_fetched(served: Hub, tmp_path: Path) -> None:
    spec = spec_of(["hf://org/rows", "hf://org/plain"])
    moved: list[int] = []
    base = fetch_base_model(spec, tmp_path / "base", moved.append)
    rows = fetch_dataset(spec, tmp_path / "data", moved.append)
    assert {path.name: path.stat().st_size for path in base.iterdir()} == {
        "config.json": 2,
        "tokenizer.json": 2,
        "model.safetensors": 5000,
    }
    assert [path.read_bytes()[:1] for path in rows.train] == [b"1", b"2", b"1", b"2"]
    assert [path.suffix for path in rows.train] == [".parquet", ".parquet", ".jsonl", ".jsonl"]
    assert sum(moved) == sum(download_bytes(spec)[:2])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_is_not_what_was_frozen_is_refused(served: Hub, name: str, tmp_path: Path) -> None:
    spec = spec_of("hf://org/plain")
    files = served.repositories["model", "org/base"]
    files[name] = b"!" * len(files[name])
    with pytest.raises(DataError, match=f"hf://org/base@{COMMIT}/{name}"):
        fetch_base_model(spec, tmp_path / "base")
    assert not (tmp_path / "base" / name).exists()


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, PermissionDenied), (403, PermissionDenied), (404, NoInputError), (400, NoInputError)],
)
def test_a_refusal_has_its_kind(served: Hub, status: int, kind: type[JobError], tmp_path: Path) -> None:
    spec = spec_of("hf://org/plain")
    served.refused = status
    with pytest.raises(kind, match="hf://org/plain"):
        spec_of("hf://org/plain", base="hf://org/plain")
    with pytest.raises(kind, match="hf://org/base@"):
        fetch_base_model(spec, tmp_path)


def test_a_hub_that_is_busy_is_asked_again(served: Hub, tmp_path: Path) -> None:
    spec = spec_of("hf://org/plain")
    served.failures = 1
    assert fetch_dataset(spec, tmp_path).train[0].read_bytes() == b"1"


@pytest.mark.parametrize(
    ("reference", "kind", "text"),
    [
        ("hf://org/coded", DataError, "coded.py"),
        ("hf://org/empty", NoInputError, "no file of rows"),
        ("hf://org/rows:validation", NoInputError, "no file of rows"),
        ("hf://org/rows@v2", NoInputError, "404"),
        ("hf://org/nothing", NoInputError, "404"),
        ("hf://rows", ConfigError, "organisation/name"),
        ("hf://org/rows:train[:10]", ConfigError, "organisation/name"),
    ],
)
def test_what_a_hub_cannot_give_is_said(served: Hub, reference: str, kind: type[JobError], text: str) -> None:
    with pytest.raises(kind, match=re.escape(reference)) as caught:
        spec_of(reference)
    assert text in caught.value.message


def test_a_hub_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnavailableError, match="hf://org/base"):
        hub.list_files("hf://org/base", "model")
