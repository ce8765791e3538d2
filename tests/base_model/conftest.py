import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from job.contract.config import Dataset, Recipe, Training

HIDDEN, VOCABULARY, LAYERS = 8, 32, 2
PROJECTIONS = {f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"}
PROJECTIONS |= {
    "mlp.gate_proj": (2 * HIDDEN, HIDDEN),
    "mlp.up_proj": (2 * HIDDEN, HIDDEN),
    "mlp.down_proj": (HIDDEN, 2 * HIDDEN),
}


def weights(shapes: dict[str, tuple[int, ...]]) -> bytes:
    """A safetensors file of zeros, by the format's own writer."""
    return bytes(save({name: np.zeros(shape, np.float16) for name, shape in shapes.items()}))


def shapes_of_blocks(blocks: range) -> dict[str, tuple[int, ...]]:
    return {
        f"model.layers.{block}.{name}.weight": shape
        for block in blocks
        for name, shape in (PROJECTIONS | {"input_layernorm": (HIDDEN,)}).items()
    }


SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
    **shapes_of_blocks(range(LAYERS)),
    "model.norm.weight": (HIDDEN,),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model in miniature, as save_pretrained lays one down; its weights are zeros."""
    directory = tmp_path / "base"
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "tokenizer_config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(weights(SHAPES))
    return directory


@pytest.fixture
def sharded(base: Path) -> Path:
    """The same in two shards with an index."""
    (base / "model.safetensors").unlink()
    second = shapes_of_blocks(range(1, LAYERS))
    first = {name: shape for name, shape in SHAPES.items() if name not in second}
    names = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    for file, shapes in names.items():
        (base / file).write_bytes(weights(shapes))
    weight_map = {name: file for file, shapes in names.items() for name in shapes}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return base


@pytest.fixture
def edit() -> Callable[..., None]:
    """Changes keys of a JSON file; None takes one out."""

    def change(path: Path, **keys: Any) -> None:
        value = json.loads(path.read_text()) | keys
        path.write_text(json.dumps({key: each for key, each in value.items() if each is not None}))

    return change


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(name="tiny", base_model="/base", dataset=Dataset(train="rows.jsonl"), training=Training(max_steps=1))
