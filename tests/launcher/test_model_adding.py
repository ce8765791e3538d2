"""A base model from a hub or a directory into a real S3 server and into a directory."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from job.contract.config import RunConfig
from job.contract.errors import DataError, JobError, NoInputError, PermissionDenied, TakenError
from job.contract.model import read_document, sha256_hex
from job.inputs import freeze
from job.storage import Storage
from launcher.model_adding import RECORD, Added, AddedFile, Record, add, find
from tests.conftest import ROOT
from tests.hub import COMMIT, Hub, serving

CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "hidden_size": 8, "num_hidden_layers": 2}).encode()
SHARDS = {f"model-0000{number}-of-00002.safetensors": bytes([number]) * (9 << 20) for number in (1, 2)}  # sent in parts
INDEX = json.dumps({"weight_map": {f"layer.{number}": name for number, name in enumerate(SHARDS)}}).encode()
MODEL = {
    "README.md": b"# base",
    "config.json": CONFIG,
    "model.safetensors.index.json": INDEX,
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    **SHARDS,
}
SOURCE, BYTES = "hf://org/base", sum(map(len, MODEL.values()))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    others = {"pytorch_model.bin": b"cos\nsystem\n", ".gitattributes": b"x", "onnx/model.onnx": b"o"}
    with serving({("model", "org/base"): MODEL | others}) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield served


def there(storage: Storage) -> dict[str, bytes]:
    """What a run would read of the prefix."""
    names = [stat.key for stat in storage.list("") if stat.key != RECORD]
    sizes = {name: stat.size for name in names if (stat := storage.head(name))}
    return {name: storage.read_range(name, 0, size, etag_of(storage, name)) for name, size in sizes.items()}


def etag_of(storage: Storage, name: str) -> str:
    stat = storage.head(name)
    assert stat
    return stat.etag


def record(storage: Storage) -> Record:
    found = storage.get(RECORD)
    assert found
    return read_document(Record, found[0], RECORD)


def fetched(hub: Hub) -> list[str]:
    """The files that the hub was asked for, since it was last looked at."""
    names = [path.rpartition("/")[2] for path, _ in hub.asked if "/resolve/" in path]
    hub.asked.clear()
    return names


def test_a_model_of_a_hub_arrives_whole_and_config_json_comes_last(hub: Hub, storage: Storage) -> None:
    told: list[tuple[str, bool]] = []
    moved: list[int] = []
    whole: list[int] = []
    added = add(find(SOURCE), storage, moved.append, whole.append, lambda name, _, sent: told.append((name, sent)))
    assert added == Added(f"{storage.uri}/", sent_bytes=BYTES, kept_bytes=0)
    assert there(storage) == MODEL
    assert sorted(told) == [(name, True) for name in sorted(MODEL)]
    assert told[-1][0] == "config.json"
    assert whole == [sum(moved)] == [2 * BYTES]
    noted = record(storage)
    assert (noted.source, noted.commit) == (SOURCE, COMMIT)
    assert {name: file.sha256 for name, file in noted.files.items()} == {
        name: sha256_hex(body) for name, body in MODEL.items()
    }


def test_a_run_takes_what_was_added(hub: Hub, storage: Storage, tmp_path: Path) -> None:
    added = add(find(SOURCE), storage)
    (tmp_path / "rows.jsonl").write_bytes(b"{}")
    config = {"name": "t", "base_model": added.uri, "dataset": {"train": str(tmp_path / "rows.jsonl")}}
    spec = freeze(RunConfig.model_validate(config | {"training": {"max_steps": 1}}), None, "0")
    assert sorted(file.uri.removeprefix(added.uri) for file in spec.base_model.files) == sorted(MODEL)


def test_a_model_of_a_directory_is_added_with_its_links_followed(storage: Storage, tmp_path: Path) -> None:
    source, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    source.mkdir()
    blobs.mkdir()
    for name, body in MODEL.items():
        (blobs / name).write_bytes(body)
        (source / name).symlink_to(blobs / name)
    moved: list[int] = []
    add(find(str(source)), storage, moved.append)
    assert there(storage) == MODEL
    assert sum(moved) == BYTES


class Cut(Exception):
    """The machine goes away."""


def cut_after(name: str) -> Callable[[str, AddedFile, bool], None]:
    def on_file(told: str, _: AddedFile, sent: bool) -> None:
        if told == name:
            raise Cut

    return on_file


@pytest.mark.parametrize("last", ["tokenizer.json", "model-00001-of-00002.safetensors"])
def test_an_addition_that_was_cut_is_no_base_model_and_goes_on_where_it_was(
    hub: Hub, storage: Storage, last: str
) -> None:
    model = find(SOURCE)
    with pytest.raises(Cut):
        add(model, storage, on_file=cut_after(last))
    cut = there(storage)
    assert last in cut
    assert "config.json" not in cut
    with pytest.raises(NoInputError, match=r"has no (safetensors|config\.json)"):
        find(f"{storage.uri}/")
    fetched(hub)
    rest = add(model, storage)
    assert sorted(fetched(hub)) == sorted(MODEL.keys() - cut.keys())
    assert rest.kept_bytes == sum(map(len, cut.values()))
    assert there(storage) == MODEL


_KILLED = """
import os, signal, sys
from job.storage.opening import open_storage
from launcher.model_adding import add, find

moved = 0

def progress(size):
    global moved
    moved += size
    if moved > 32 << 20:
        os.kill(os.getpid(), signal.SIGKILL)

add(find(sys.argv[1]), open_storage(sys.argv[2]), progress)
"""


def test_one_that_is_killed_in_the_middle_of_a_shard_leaves_no_half_of_it(hub: Hub, storage: Storage) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, SOURCE, storage.uri], cwd=ROOT, check=False)
    assert killed.returncode == -9
    cut = there(storage)
    assert cut.items() < MODEL.items(), "what has its name is whole"
    assert "model-00001-of-00002.safetensors" in cut
    fetched(hub)
    add(find(SOURCE), storage)
    assert "model-00001-of-00002.safetensors" not in fetched(hub)
    assert there(storage) == MODEL


def test_once_more_moves_nothing(hub: Hub, storage: Storage) -> None:
    add(find(SOURCE), storage)
    model = find(SOURCE)
    fetched(hub)
    assert add(model, storage) == Added(f"{storage.uri}/", sent_bytes=0, kept_bytes=BYTES)
    assert fetched(hub) == []


def test_what_was_damaged_in_the_store_or_is_missing_is_sent_again(hub: Hub, storage: Storage) -> None:
    model = find(SOURCE)
    add(model, storage)
    storage.put("tokenizer.json", b"[]")
    fetched(hub)
    add(model, storage)
    assert fetched(hub) == ["tokenizer.json"]
    assert there(storage) == MODEL


def test_a_file_that_changed_on_the_hub_before_the_end_is_sent_again(hub: Hub, storage: Storage) -> None:
    with pytest.raises(Cut):
        add(find(SOURCE), storage, on_file=cut_after("tokenizer.json"))
    hub.repositories["model", "org/base"]["tokenizer.json"] = b'{"new": 1}'
    add(find(SOURCE), storage)
    assert there(storage) == MODEL | {"tokenizer.json": b'{"new": 1}'}


def test_a_model_that_runs_may_have_pinned_is_not_replaced(hub: Hub, storage: Storage) -> None:
    add(find(SOURCE), storage)
    hub.repositories["model", "org/base"]["model-00001-of-00002.safetensors"] = b"n" * (9 << 20)
    with pytest.raises(TakenError, match=f"holds another model: {SOURCE} at commit {COMMIT}"):
        add(find(SOURCE), storage)
    assert there(storage) == MODEL


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "not added by this command"),
        ("model.safetensors", "model.safetensors, which hf://org/base has not"),
    ],
)
def test_a_prefix_with_files_of_others_is_left_alone(hub: Hub, storage: Storage, name: str, words: str) -> None:
    storage.put(name, b"mine")
    with pytest.raises(TakenError, match=words):
        add(find(SOURCE), storage)
    assert there(storage) == {name: b"mine"}
    assert storage.head(RECORD) is None


def test_two_additions_do_not_meet_in_one_prefix(hub: Hub, storage: Storage) -> None:
    model = find(SOURCE)

    def second(name: str, _: AddedFile, sent: bool) -> None:
        if name == "README.md":
            add(model, storage)

    with pytest.raises(TakenError, match="another addition writes to"):
        add(model, storage, on_file=second)
    assert there(storage) == MODEL


@pytest.mark.parametrize(
    ("files", "kind", "words"),
    [
        ({"pytorch_model.bin": b"p"}, DataError, "pickled weights only"),
        ({"README.md": b"#"}, NoInputError, "no safetensors"),
        ({**MODEL, "config.json": None}, NoInputError, "no config.json"),
        ({**MODEL, "tokenizer.json": None}, NoInputError, "no tokenizer.json"),
        ({**MODEL, "model-00002-of-00002.safetensors": None}, NoInputError, "lacks model-00002-of-00002.safetensors"),
        ({**MODEL, "model.safetensors.index.json": None}, NoInputError, "no model.safetensors.index.json"),
        ({**MODEL, "other.safetensors": b"w"}, DataError, "second set of weights"),
        ({**MODEL, "modeling_base.py": b"import os"}, DataError, "code of its own"),
        ({**MODEL, "adapter_config.json": b"{}"}, DataError, "an adapter"),
        ({**MODEL, "config.json": CONFIG[:-1] + b', "auto_map": {}}'}, DataError, "auto_map"),
        ({**MODEL, "config.json": b'{"hidden_size": 8}'}, DataError, "architectures"),
        (
            {**MODEL, "config.json": CONFIG[:-1] + b', "quantization_config": {"quant_method": "gptq"}}'},
            DataError,
            "quantized (gptq)",
        ),
    ],
)
def test_what_the_job_would_refuse_is_refused_before_weights_move(
    hub: Hub, files: dict[str, bytes | None], kind: type[JobError], words: str
) -> None:
    hub.repositories["model", "org/base"] = {name: body for name, body in files.items() if body is not None}
    with pytest.raises(kind) as caught:
        find(SOURCE)
    assert words in caught.value.message
    assert not [name for name in fetched(hub) if name.endswith((".safetensors", ".bin"))]


def test_a_shard_that_is_not_what_the_hub_says_never_arrives(hub: Hub, storage: Storage) -> None:
    name = "model-00002-of-00002.safetensors"
    model = find(SOURCE)
    hub.repositories["model", "org/base"][name] = b"!" * len(MODEL[name])
    with pytest.raises(DataError, match=name):
        add(model, storage)
    assert not {name, "config.json"} & there(storage).keys()


def test_a_gated_model_asks_for_a_token(hub: Hub) -> None:
    hub.refused = 403
    with pytest.raises(PermissionDenied) as caught:
        find(SOURCE)
    assert "HF_TOKEN" in caught.value.resolution


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    call = [sys.executable, "-m", "launcher.cli", "model", "add", *arguments]
    return subprocess.run(call, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)


def test_the_command_tells_the_commit_each_file_and_what_to_write_into_a_config(hub: Hub, storage: Storage) -> None:
    ended = command(SOURCE, f"{storage.uri}/")
    assert (ended.returncode, ended.stdout) == (0, f"{storage.uri}/\n"), ended.stderr
    first, *files, last = ended.stderr.splitlines()
    assert first == f"{SOURCE} at commit {COMMIT}: {len(MODEL)} files, {BYTES:,} bytes"
    told = [json.loads(line) for line in files]
    assert {each["file"]: each["sha256"] for each in told} == {name: sha256_hex(body) for name, body in MODEL.items()}
    assert last == f"{BYTES:,} bytes added, 0 were there"
    assert "hf_test" not in ended.stdout + ended.stderr
    again = command(SOURCE, storage.uri)
    assert json.loads(again.stderr.splitlines()[1])["event"] == "kept"


@pytest.mark.parametrize(
    ("arguments", "status", "code", "words"),
    [
        ((SOURCE, "{to}"), 401, 77, "HF_TOKEN"),
        (("hf://org/nothing", "{to}"), None, 78, "the hub answered 404"),
        (("hf://base", "{to}"), None, 78, "hf://organisation/name"),
        (("/nowhere/base", "{to}"), None, 78, "/nowhere/base is not there"),
        ((SOURCE, "hf://org/there"), None, 78, "not a storage"),
    ],
)
def test_how_the_command_ends(
    hub: Hub, arguments: tuple[str, str], status: int | None, code: int, words: str, tmp_path: Path
) -> None:
    hub.refused = status
    ended = command(*(each.format(to=tmp_path / "to") for each in arguments))
    assert (ended.returncode, ended.stdout, words in ended.stderr) == (code, "", True), ended.stderr
    assert not (tmp_path / "to").exists()


def test_a_hub_that_is_away_ends_the_command_with_69(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    ended = command(SOURCE, str(tmp_path))
    assert (ended.returncode, "Check the network and HF_ENDPOINT" in ended.stderr) == (69, True), ended.stderr
