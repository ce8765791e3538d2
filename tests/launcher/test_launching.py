"""What a launch refuses before there is a Job, by the config and the sizes of its inputs."""

from pathlib import Path

import pytest
import yaml

from job.contract.errors import ConfigError
from job.storage import Storage
from launcher.launching import Prepared, prepare
from tests.conftest import ROOT


@pytest.fixture
def config(tmp_path: Path) -> dict[str, object]:
    """Of a base whose weights take 30 GB, and no space on this disk."""
    base = tmp_path / "base"
    base.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (base / name).write_text("{}")
    with (base / "model.safetensors").open("wb") as weights:
        weights.truncate(30 * 10**9)
    (tmp_path / "rows.jsonl").write_text("{}")
    return {
        "name": "bot",
        "base_model": str(base),
        "dataset": {"train": str(tmp_path / "rows.jsonl")},
        "training": {"max_steps": 1},
    }


def prepared(config: dict[str, object], storage: Storage, freeze_in_pod: bool = False) -> Prepared:
    template = yaml.safe_load((ROOT / "k8s" / "job.yaml").read_text())
    body = yaml.safe_dump(config, sort_keys=False).encode()
    return prepare(body, "bot.yaml", template, storage, "ada", freeze_in_pod=freeze_in_pod)


def test_a_scratch_that_is_too_small_is_refused_before_a_gpu_is_asked_for(
    config: dict[str, object], storage: Storage
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(config | {"compute": {"scratch_gib": 50}}, storage)
    message = caught.value.message
    assert message.startswith("bot.yaml: line 8: compute.scratch_gib: 50 GiB, and the run needs ")
    assert "merged model 27.9, GGUF f16 27.9" in message
    assert prepared(config | {"compute": {"scratch_gib": 70}}, storage).frozen
    assert prepared(config | {"export": {"gguf": []}}, storage).frozen


def test_it_is_told_beside_the_ceilings_of_the_site(config: dict[str, object], storage: Storage) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(config | {"compute": {"max_hours": 1000}}, storage)
    assert "compute.max_hours is 1000" in caught.value.message
    assert "line 7: compute.scratch_gib: 50 GiB" in caught.value.message


def test_who_does_not_look_at_the_inputs_does_not_know_their_sizes(config: dict[str, object], storage: Storage) -> None:
    assert not prepared(config, storage, freeze_in_pod=True).frozen
