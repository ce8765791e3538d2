"""What a config's inputs expand to, how they are pinned, and that only those very bytes are fetched."""

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.contract.config import RunConfig
from job.contract.documents import Spec
from job.contract.errors import DataError, JobError, NoInputError
from job.contract.model import canonical_bytes
from job.inputs import download_bytes, fetch_base_model, fetch_dataset, freeze, is_visible, matches, resolved
from job.storage.opening import open_storage

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}


def config(base: str, train: object, held_out: object = None, **more: object) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "test",
            "base_model": base,
            "dataset": {"train": train, "eval": held_out},
            "training": {"max_steps": 1},
            **more,
        }
    )


def spec_of(base: str, train: object, held_out: object = None, again: int = 0) -> Spec:
    return freeze(config(base, train, held_out), None, "0", again)


@pytest.fixture(params=["directory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for inputs, with a model under `base/`."""
    uri = str(tmp_path / "inputs") if request.param == "directory" else request.getfixturevalue("bucket")
    put(uri, {f"base/{name}": body for name, body in MODEL.items()})
    return uri


def put(root: str, files: dict[str, bytes]) -> None:
    storage = open_storage(root)
    for key, body in files.items():
        storage.put(key, body)


def names(root: str, spec: Spec) -> list[str]:
    return [file.uri.removeprefix(f"{root}/") for file in spec.dataset.train]


ROWS = {"rows/b.jsonl": b"2", "rows/a.jsonl": b"1", "rows/deep/c.jsonl.gz": b"3", "rows/_SUCCESS": b"", "rows/.x": b"0"}


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("rows/b.jsonl", ["b.jsonl"]),
        ("rows/", ["a.jsonl", "b.jsonl", "deep/c.jsonl.gz"]),
        ("rows/*", ["a.jsonl", "b.jsonl"]),
        ("rows/[!a].jsonl", ["b.jsonl"]),
        ("rows/?.jsonl", ["a.jsonl", "b.jsonl"]),
        ("rows/**/*.jsonl*", ["a.jsonl", "b.jsonl", "deep/c.jsonl.gz"]),
        ("rows/**", ["a.jsonl", "b.jsonl", "deep/c.jsonl.gz"]),
        ("r*s/a*", ["a.jsonl"]),
        (["rows/b.jsonl", "rows/*.jsonl"], ["b.jsonl", "a.jsonl"]),
    ],
)
def test_a_reference_expands_to_sorted_visible_files(
    root: str, reference: str | list[str], expected: list[str]
) -> None:
    put(root, ROWS)
    train = f"{root}/{reference}" if isinstance(reference, str) else [f"{root}/{each}" for each in reference]
    assert names(f"{root}/rows", spec_of(f"{root}/base/", train)) == expected


def test_a_name_that_looks_like_a_pattern_is_taken_as_a_name(root: str) -> None:
    put(root, {"rows/a[1].jsonl": b"1", "rows/a1.jsonl": b"2"})
    assert names(f"{root}/rows", spec_of(f"{root}/base", f"{root}/rows/a[1].jsonl")) == ["a[1].jsonl"]


@pytest.mark.parametrize("reference", ["rows/none.jsonl", "rows/", "rows/*.csv", "markers/"])
def test_nothing_there_is_no_input(root: str, reference: str) -> None:
    put(root, {"markers/_SUCCESS": b"", "markers/.hidden/a.jsonl": b"1"})
    with pytest.raises(NoInputError, match=re.escape(f"{root}/{reference}")):
        spec_of(f"{root}/base/", f"{root}/{reference}")


def test_only_folder_markers_are_no_input(bucket: str, s3: "S3Client") -> None:
    put(bucket, {f"base/{name}": body for name, body in MODEL.items()})
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    s3.put_object(Bucket=name, Key=f"{prefix}/rows/")
    s3.put_object(Bucket=name, Key=f"{prefix}/rows/deep/")
    with pytest.raises(NoInputError, match="holds no file of rows"):
        spec_of(f"{bucket}/base/", f"{bucket}/rows/")


@pytest.mark.parametrize("key", ["rows/new\nline.jsonl", "rows/bell\x07.jsonl"])
def test_a_key_that_no_log_line_can_hold_is_refused(bucket: str, s3: "S3Client", key: str) -> None:
    put(bucket, {f"base/{name}": body for name, body in MODEL.items()})
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    s3.put_object(Bucket=name, Key=f"{prefix}/{key}", Body=b"{}")
    with pytest.raises(DataError, match="not safe to use"):
        spec_of(f"{bucket}/base/", f"{bucket}/rows/")


@pytest.mark.parametrize("train", ["../rows.jsonl", "a/../../rows.jsonl", "a//b.jsonl"])
def test_a_uri_that_climbs_is_refused(bucket: str, train: str) -> None:
    put(bucket, {f"base/{name}": body for name, body in MODEL.items()})
    with pytest.raises(DataError, match="not safe to use"):
        spec_of(f"{bucket}/base/", f"{bucket}/{train}")


def test_an_escaped_slash_is_a_character_of_the_name(bucket: str, s3: "S3Client", tmp_path: Path) -> None:
    put(bucket, {f"base/{name}": body for name, body in MODEL.items()} | {"rows/a%2F..%2Fb.jsonl": b"row"})
    files = fetch_dataset(spec_of(f"{bucket}/base", f"{bucket}/rows/"), tmp_path)
    assert [path.name for path in files.train] == ["train-00000.jsonl"]
    assert files.train[0].read_bytes() == b"row"


@pytest.mark.parametrize("name", ["rows.zip", "rows.tar", "rows.tar.gz", "rows.TGZ"])
def test_an_archive_is_refused(root: str, name: str) -> None:
    put(root, {f"rows/{name}": b"PK", "rows/a.jsonl": b"{}"})
    with pytest.raises(DataError, match="is an archive"):
        spec_of(f"{root}/base/", f"{root}/rows/")


def test_a_spec_is_the_same_bytes_each_time_and_other_bytes_for_other_inputs(root: str) -> None:
    put(root, ROWS)
    frozen = [canonical_bytes(spec_of(f"{root}/base/", f"{root}/rows/")) for _ in range(2)]
    assert frozen[0] == frozen[1]
    assert canonical_bytes(spec_of(f"{root}/base/", f"{root}/rows/", again=1)) != frozen[0]
    put(root, {"rows/a.jsonl": b"changed"})
    assert canonical_bytes(spec_of(f"{root}/base/", f"{root}/rows/")) != frozen[0]


def test_compute_is_no_part_of_a_spec_but_for_its_gpus(root: str) -> None:
    put(root, ROWS)
    specs = {
        canonical_bytes(freeze(config(f"{root}/base/", f"{root}/rows/", compute=compute), None, "0"))
        for compute in ({"memory_gib": 16}, {"memory_gib": 64}, {"gpus": 2})
    }
    assert len(specs) == 2


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(str(tmp_path), {f"base/{name}": body for name, body in MODEL.items()} | ROWS | {"mine.jinja": b"{{ x }}"})
    monkeypatch.chdir(tmp_path)
    relative = config("base", ["rows/a.jsonl", "rows/"], "rows/b.jsonl", chat_template="mine.jinja")
    spec = freeze(relative, None, "0")
    assert spec.recipe == resolved(relative.recipe)
    assert spec.recipe.base_model == str(tmp_path / "base")
    assert spec.recipe.dataset.train == (str(tmp_path / "rows/a.jsonl"), str(tmp_path / "rows") + "/")
    assert spec.recipe.chat_template == str(tmp_path / "mine.jinja")
    assert [file.uri for file in spec.dataset.eval] == [str(tmp_path / "rows/b.jsonl")]


def test_a_template_file_is_frozen_with_its_text(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    put(str(tmp_path), {f"base/{name}": body for name, body in MODEL.items()} | ROWS)
    chosen = config(f"{tmp_path}/base", f"{tmp_path}/rows/", chat_template=str(template))
    with pytest.raises(NoInputError, match=re.escape(str(template))):
        freeze(chosen, None, "0")
    template.write_text("{{ one }}")
    one = freeze(chosen, None, "0")
    template.write_text("{{ two }}")
    assert one.chat_template == "{{ one }}"
    assert canonical_bytes(freeze(chosen, None, "0")) != canonical_bytes(one)


def test_what_was_frozen_is_what_is_fetched(root: str, tmp_path: Path) -> None:
    put(root, ROWS | {"held/out.csv": b"e"})
    spec = spec_of(f"{root}/base/", f"{root}/rows/", f"{root}/held/out.csv")
    moved: list[int] = []
    base = fetch_base_model(spec, tmp_path / "base", moved.append)
    files = fetch_dataset(spec, tmp_path / "data", moved.append)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == MODEL
    assert [path.read_bytes() for path in files.train] == [b"1", b"2", b"3"]
    suffixes = [path.name.partition(".")[2] for path in files.train]
    assert suffixes == ["jsonl", "jsonl", "jsonl.gz"]
    assert [path.read_bytes() for path in files.eval] == [b"e"]
    assert files.name_of(files.train[0]) == f"{root}/rows/a.jsonl"
    base_bytes, dataset_bytes, weight_bytes = download_bytes(spec)
    assert sum(moved) == base_bytes + dataset_bytes
    assert weight_bytes == len(MODEL["model.safetensors"])
    assert (base_bytes + dataset_bytes > 0) == root.startswith("s3://")


def fetch_all(spec: Spec, directory: Path) -> None:
    fetch_base_model(spec, directory / "base")
    fetch_dataset(spec, directory / "data")


@pytest.mark.parametrize("key", ["rows/a.jsonl", "base/model.safetensors"])
def test_an_input_that_changed_since_it_was_frozen_is_refused(root: str, key: str, tmp_path: Path) -> None:
    put(root, ROWS)
    spec = spec_of(f"{root}/base/", f"{root}/rows/")
    put(root, {key: b"other"})
    with pytest.raises(DataError, match=f"{re.escape(root)}/{key}.*since"):
        fetch_all(spec, tmp_path / "scratch")


def test_of_a_model_only_what_is_loaded_is_fetched(root: str) -> None:
    others = (
        "pytorch_model.bin",
        "original/consolidated.00.pth",
        "consolidated.safetensors",
        ".gitattributes",
        "m.gguf",
    )
    put(root, {f"base/{name}": b"x" for name in others})
    spec = spec_of(f"{root}/base/", f"{root}/base/config.json")
    assert sorted(file.uri.rpartition("/")[2] for file in spec.base_model.files) == sorted(MODEL)


@pytest.mark.parametrize(("name", "kind"), [("pytorch_model.bin", DataError), ("readme.txt", NoInputError)])
def test_a_model_without_safetensors_is_refused(root: str, name: str, kind: type[JobError]) -> None:
    put(root, {f"other/{name}": b"x"})
    with pytest.raises(kind, match=re.escape(f"{root}/other")):
        spec_of(f"{root}/other/", f"{root}/base/config.json")


SEGMENT = st.text("ab1", min_size=1, max_size=3)
NAMES = st.lists(st.lists(SEGMENT, min_size=1, max_size=3).map("/".join), max_size=6)
PATTERN = st.lists(
    st.lists(st.sampled_from(["a", "b", "?", "*", "[ab]", "[!a]"]), min_size=1, max_size=3).map("".join)
    | st.just("**"),
    min_size=1,
    max_size=3,
).map("/".join)


@given(names=NAMES, pattern=PATTERN)
def test_a_pattern_means_over_keys_what_it_means_over_files(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], pattern: str
) -> None:
    home = tmp_path_factory.mktemp("globbed")
    for name in names:
        path = home / name
        if not any(parent.is_file() for parent in path.parents) and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    files = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    by_shell = {path for path in glob.glob(pattern, root_dir=home, recursive=True) if (home / path).is_file()}  # noqa: PTH207
    assert {name for name in files if matches(name, pattern)} == by_shell


@given(st.lists(SEGMENT | SEGMENT.map("_{}".format) | SEGMENT.map(".{}".format), min_size=1, max_size=3))
def test_a_file_is_visible_when_no_part_of_its_path_is_hidden(segments: list[str]) -> None:
    assert is_visible("/".join(segments)) == all(segment[0] not in "._" for segment in segments)
    assert not is_visible("/".join(segments) + "/")
