"""The adapter as it is published: a card that a hub can read, no path of this machine, and whole weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from job.base_model import BaseModel
from job.contract.config import Recipe
from job.contract.documents import FrozenModel, TrainSummary
from job.contract.errors import BugError
from job.model_card import clean_adapter, write_model_card

Card = Callable[..., str]


@pytest.fixture
def card(tmp_path: Path, recipe: Recipe, base: BaseModel, summary: TrainSummary) -> Card:
    def write(base: BaseModel = base, **keys: object) -> str:
        write_model_card(
            tmp_path,
            run_id="support-bot-0123456789",
            recipe=recipe.model_copy(update=keys),
            base=base,
            summary=summary,
            versions={"peft": "0.21.2"},
        )
        return (tmp_path / "README.md").read_text()

    return write


def front_matter(text: str) -> dict[str, object]:
    return dict(yaml.safe_load(text.split("---\n")[1]))


def test_a_card_of_a_base_on_a_hub(card: Card) -> None:
    text = card(base_model="hf://acme/tiny@0123abc")
    assert front_matter(text) == {
        "base_model": "acme/tiny",
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "datasets": ["acme/chats"],
        "tags": ["lora", "unsloth", "trl", "sft"],
    }
    assert 'from_pretrained("acme/tiny"' in text


def test_a_card_of_a_base_elsewhere_names_it_in_its_text_alone(card: Card) -> None:
    text = card()
    assert "base_model" not in front_matter(text)
    assert "copy it to a directory first" in text
    for fact in ("s3://models/tiny/", "s3://data/rows.jsonl", "support-bot-0123456789", "123,456", "1.2500", "0.21.2"):
        assert fact in text


def test_a_licence_with_a_name_and_one_that_nobody_stated(card: Card, base: BaseModel) -> None:
    named = front_matter(card(base=replace(base, licence="other", licence_name="acme-1")))
    assert (named["license"], named["license_name"]) == ("other", "acme-1")
    silent = card(base=replace(base, licence=None))
    assert "license" not in front_matter(silent)
    assert "not stated" in silent


def test_the_config_in_the_card_is_the_recipe(card: Card, recipe: Recipe) -> None:
    assert Recipe.model_validate(yaml.safe_load(card().split("```yaml\n")[1].removesuffix("```\n"))) == recipe


SCRATCH = Path("/scratch/support-bot-0123456789")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter as peft leaves it."""
    directory = tmp_path / "lora"
    directory.mkdir()
    config = {"base_model_name_or_path": f"{SCRATCH}/inputs/base", "peft_type": "LORA", "r": 16, "revision": None}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    weights = {name.format("A"): np.zeros((2, 8), np.float32), name.format("B"): np.zeros((8, 2), np.float32)}
    save_file(weights, directory / "adapter_model.safetensors")
    (directory / "README.md").write_text("# a card of ours")
    return directory


def frozen(uri: str, commit: str | None = None) -> FrozenModel:
    return FrozenModel(uri=uri, commit=commit, files=())


@pytest.mark.parametrize(
    ("base", "name", "revision"),
    [
        (frozen("hf://acme/tiny@main", "0123abc"), "acme/tiny", "0123abc"),
        (frozen("s3://models/tiny/"), "s3://models/tiny/", None),
        (frozen("/models/tiny"), "/models/tiny", None),
    ],
)
def test_the_published_config_names_the_base_as_others_find_it(
    adapter: Path, base: FrozenModel, name: str, revision: str | None
) -> None:
    clean_adapter(adapter, base, SCRATCH)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": name, "peft_type": "LORA", "r": 16, "revision": revision}


def test_a_file_that_mentions_scratch_is_found(adapter: Path) -> None:
    (adapter / "README.md").write_text(f"base_model: {SCRATCH}/inputs/base")
    with pytest.raises(BugError, match=r"README\.md"):
        clean_adapter(adapter, frozen("s3://models/tiny/"), SCRATCH)


def test_weights_that_are_not_whole(adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(BugError, match="not whole"):
        clean_adapter(adapter, frozen("s3://models/tiny/"), SCRATCH)
    save_file({"model.norm.weight": np.zeros(8, np.float32)}, weights)
    with pytest.raises(BugError, match="no LoRA weights"):
        clean_adapter(adapter, frozen("s3://models/tiny/"), SCRATCH)
    weights.unlink()
    with pytest.raises(BugError, match="not whole"):
        clean_adapter(adapter, frozen("s3://models/tiny/"), SCRATCH)
