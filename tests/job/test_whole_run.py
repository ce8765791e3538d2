"""A whole run: from a config in the store to artifacts that load, and what a reader of the store then finds."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from job.contract.documents import Claim, Latest, Lease, Outcome, Published, Result, Spec
from job.contract.keys import latest_key, run_id_of
from job.contract.model import canonical_bytes
from job.storage import Storage
from job.storage.opening import open_storage
from tests.job.conftest import Ended, Pod
from tests.tiny import sums

Make = Callable[..., Pod]


def read(storage: Storage, key: str) -> bytes:
    found = storage.get(key)
    assert found, key
    return found[0]


@pytest.fixture
def whole(pod: Make) -> tuple[Pod, Ended, Storage, Result]:
    start = pod(
        {"max_steps": 4, "report_to": ["tensorboard"]},
        samples={"prompts": ["Ada has 3 coins."], "max_new_tokens": 4},
        dataset={"eval": 0.1},
    )
    ended = start.start()
    assert ended.code == 0, ended.printed
    storage = open_storage(start.root)
    [key] = [stat.key for stat in storage.list("runs/") if stat.key.endswith("/result.json")]
    return start, ended, storage, Result.model_validate_json(read(storage, key))


def test_a_whole_run(whole: tuple[Pod, Ended, Storage, Result], tmp_path: Path) -> None:
    _, ended, storage, result = whole
    run = f"runs/{result.run_id}"

    # Every object that the result names is there, whole.
    assert {"lora", "report"} == {kind for kind, files in result.artifacts if files}
    for artifact in result.artifacts.all():
        stat = storage.head(artifact.key)
        assert stat
        storage.download(stat, tmp_path / artifact.key)
        body = (tmp_path / artifact.key).read_bytes()
        assert (len(body), hashlib.sha256(body).hexdigest()) == (artifact.size, artifact.sha256)
    names = {Path(artifact.key).name for artifact in result.artifacts.all()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= names
    assert {"report.html", "samples.json", "metrics.jsonl", "rejects.jsonl"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)

    # The spec is what the run id hashes, and pins every input.
    spec_bytes = read(storage, f"{run}/spec.json")
    spec = Spec.model_validate_json(spec_bytes)
    assert canonical_bytes(spec) == spec_bytes
    assert run_id_of("tiny", spec_bytes) == result.run_id
    assert all(file.etag and file.size for file in spec.base_model.files + spec.dataset.train)

    # The attempt's own papers.
    attempt = f"{run}/attempts/1"
    assert Claim.model_validate_json(read(storage, f"{attempt}/claim.json")).spec_sha256 == result.spec_sha256
    assert Outcome.model_validate_json(read(storage, f"{attempt}/outcome.json")).code == 0
    assert Published.model_validate_json(read(storage, f"{attempt}/lora/published.json")).files == result.artifacts.lora
    assert Lease.model_validate_json(read(storage, f"{run}/lease.json")).attempt == 1
    assert Latest.model_validate_json(read(storage, latest_key("tiny"))).run_id == result.run_id
    assert len(list(storage.list("models/tiny/runs/"))) == 1
    chunks = [gzip.decompress(read(storage, stat.key)) for stat in storage.list(f"{attempt}/log/")]
    kept = [json.loads(line) for line in b"".join(chunks).splitlines()]
    assert len([line for line in kept if line["event"] == "step"]) == 4
    assert len(chunks) >= 3

    # What a person is told.
    assert [line["stage"] for line in ended.events("stage")] == ["download", "train", "export", "publish"]
    assert result.train.steps == 4
    assert set(result.seconds_by_stage) == {"download", "train", "export", "publish"}
    assert result.gpu_seconds == 0
    assert result.versions["unsloth"]
    assert result.train.eval_loss is not None


def test_a_second_start_trains_nothing_and_again_runs_afresh(whole: tuple[Pod, Ended, Storage, Result]) -> None:
    start, _, storage, result = whole
    before = sorted(stat.key for stat in storage.list("runs/") if "/canary/" not in stat.key)
    second = start.start()
    assert second.code == 0
    assert second.events("already done")
    assert not second.events("stage")
    assert sorted(stat.key for stat in storage.list("runs/") if "/canary/" not in stat.key) == before

    # A night of the same spec points at the run that there is.
    night = start.start("--run-id", "tiny-night-29000000")
    assert night.code == 0
    same = Result.model_validate_json(read(storage, "runs/tiny-night-29000000/result.json"))
    assert (same.same_as, same.artifacts) == (result.run_id, result.artifacts)

    check = start.start("--check", "--again")
    assert check.code == 0
    assert not check.events("already done")


def test_check_says_what_it_would_do_and_claims_nothing(pod: Make) -> None:
    start = pod()
    ended = start.start("--check")
    assert ended.code == 0, ended.printed
    assert ended.events("checked")
    keys = [stat.key for stat in open_storage(start.root).list("")]
    assert keys
    assert all("/canary/" in key for key in keys)


def test_an_adapter_loads_in_plain_peft_and_answers_as_it_did(pod: Make, tiny_base: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    prompt = sums(1)[0]["messages"][0]["content"]
    samples = {"prompts": [prompt], "max_new_tokens": 8, "temperature": 0}
    start = pod({"max_steps": 12}, samples=samples)
    ended = start.start()
    assert ended.code == 0, ended.printed
    storage = open_storage(start.root)
    [key] = [stat.key for stat in storage.list("runs/") if stat.key.endswith("/result.json")]
    result = Result.model_validate_json(read(storage, key))
    adapter = tmp_path / "adapter"
    for artifact in result.artifacts.lora:
        stat = storage.head(artifact.key)
        assert stat
        storage.download(stat, adapter / Path(artifact.key).name)
    assert str(start.scratch).encode() not in b"".join(path.read_bytes() for path in adapter.iterdir())

    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        tuned = model.generate(**ids, max_new_tokens=8, do_sample=False)
    answer = tokenizer.decode(tuned[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    [line] = [line for line in ended.events("answer") if line["model"] == "tuned"]
    assert answer == line["answer"]
