"""The base model cut down to its first block."""

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from job.one_layer import is_in_one_layer, one_layer_config, write_one_layer
from job.weights import read_tensors


def test_one_block_is_left_with_the_bases_own_weights(base: Path, tmp_path: Path) -> None:
    write_one_layer(base, tmp_path / "one")
    config = json.loads((tmp_path / "one" / "config.json").read_bytes())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (1, 64)
    ours, theirs = load_file(tmp_path / "one" / "model.safetensors"), load_file(base / "model.safetensors")
    assert set(ours) == {name for name in theirs if "layers.1." not in name}
    assert all(np.array_equal(weight, theirs[name]) for name, weight in ours.items())


def test_shards_become_one_file(base: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    (sharded / "config.json").write_bytes((base / "config.json").read_bytes())
    weights = load_file(base / "model.safetensors")
    names = sorted(weights)
    files = {name: f"model-{1 + (place % 2):05}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: weights[name] for name in names if files[name] == file}, sharded / file)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    write_one_layer(sharded, tmp_path / "one")
    assert read_tensors(tmp_path / "one").keys() == {name for name in names if "layers.1." not in name}
    ours = load_file(tmp_path / "one" / "model.safetensors")
    assert all(np.array_equal(ours[name], weights[name]) for name in ours)


def test_blocks_are_told_by_the_first_number() -> None:
    kept = ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.experts.7.up_proj.weight"]
    cut = ["model.layers.1.mlp.up_proj.weight", "model.layers.10.mlp.experts.0.up_proj.weight", "h.3.attn.weight"]
    assert all(map(is_in_one_layer, kept))
    assert not any(map(is_in_one_layer, cut))


@given(st.integers(2, 90))
def test_lists_with_an_entry_for_each_block_keep_the_first(layers: int) -> None:
    config = {
        "architectures": ["A"],
        "num_kv_shared_layers": 1,
        "text_config": {"num_hidden_layers": layers, "layer_types": ["full"] * layers, "rope_scaling": {"factor": 2}},
    }
    assert one_layer_config(config) == {
        "architectures": ["A"],
        "num_kv_shared_layers": 0,
        "text_config": {"num_hidden_layers": 1, "layer_types": ["full"], "rope_scaling": {"factor": 2}},
    }
