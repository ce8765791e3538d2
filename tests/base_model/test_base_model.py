"""A base model's directory: what is read from a good one, and what is said of each bad one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.base_model import inspect
from job.contract.config import Export, Lora, Recipe
from job.contract.errors import ConfigError, DataError, JobError, NoInputError

Edit = Callable[..., None]


def test_the_facts_of_one_file(base: Path, recipe: Recipe) -> None:
    model = inspect(base, recipe)
    assert (model.architecture, model.hidden_size, model.layers) == ("LlamaForCausalLM", 8, 2)
    assert (model.vocab_size, model.max_position_embeddings, model.dtype) == (32, 2048, "float16")
    # embedding 32 x 8; per block four 8 x 8, three 8 x 16 and a norm of 8; a last norm of 8
    assert model.parameters == 256 + 2 * (256 + 384 + 8) + 8
    assert model.weight_bytes == (base / "model.safetensors").stat().st_size
    assert len(model.modules) == 14
    assert "model.layers.1.mlp.down_proj" in model.modules
    assert not model.quantized
    assert model.ignored == ()


def test_shards_are_one_model(sharded: Path, base: Path, recipe: Recipe) -> None:
    model = inspect(sharded, recipe)
    assert model.parameters == 1560
    assert len(model.modules) == 14


def test_a_language_model_inside_another(base: Path, recipe: Recipe, edit: Edit) -> None:
    edit(base / "config.json", hidden_size=None, text_config={"hidden_size": 8, "max_position_embeddings": 4096})
    assert inspect(base, recipe).max_position_embeddings == 4096


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        ({}, (None, None)),
        ({"README.md": "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n"}, ("apache-2.0", None)),
        ({"README.md": "---\r\nlicense: 'mit' # yes\r\n---\r\n"}, ("mit", None)),
        ({"README.md": "---\nlicense: other\nlicense_name: acme-1\n---\n"}, ("other", "acme-1")),
        ({"README.md": "---\nlanguage: en\n---\nlicense: gpl-3.0\n"}, (None, None)),
        ({"README.md": "---\nlanguage: [", "LICENSE": "\n# ACME Licence\nfree\n"}, ("other", "ACME Licence")),
        ({"LICENSE.txt": "\xff\n"}, ("other", "ÿ")),
    ],
)
def test_the_licence_as_known(base: Path, recipe: Recipe, files: dict[str, str], licence: tuple[str, str]) -> None:
    for name, text in files.items():
        (base / name).write_bytes(text.encode())
    model = inspect(base, recipe)
    assert (model.licence, model.licence_name) == licence


def test_pickles_beside_safetensors_are_named_and_not_loaded(base: Path, recipe: Recipe) -> None:
    (base / "original").mkdir()
    (base / "original" / "consolidated.00.pth").write_bytes(b"cos\nsystem\n")
    (base / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    assert inspect(base, recipe).ignored == ("original/consolidated.00.pth", "pytorch_model.bin")


def refused(kind: type[JobError], directory: Path, recipe: Recipe, *words: str) -> None:
    with pytest.raises(kind) as caught:
        inspect(directory, recipe)
    assert type(caught.value) is kind
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_missing_file(base: Path, recipe: Recipe, name: str) -> None:
    (base / name).unlink()
    refused(NoInputError, base, recipe, "safetensors" if name == "model.safetensors" else name)


def test_no_directory(tmp_path: Path, recipe: Recipe) -> None:
    refused(NoInputError, tmp_path / "absent", recipe, "absent")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": \ud800', "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_file_that_is_no_object(base: Path, recipe: Recipe, name: str, text: str) -> None:
    (base / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(DataError, base, recipe, name)


@pytest.mark.parametrize(
    ("key", "value"), [("architectures", []), ("hidden_size", "8"), ("num_hidden_layers", 0), ("vocab_size", -1)]
)
def test_an_unusable_config_names_its_key(base: Path, recipe: Recipe, edit: Edit, key: str, value: Any) -> None:
    edit(base / "config.json", **{key: value})
    refused(DataError, base, recipe, "config.json", key)


def test_pickled_weights_only(base: Path, recipe: Recipe) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    refused(DataError, base, recipe, "pytorch_model.bin", "any code")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_code_of_its_own_by_auto_map(base: Path, recipe: Recipe, edit: Edit, name: str) -> None:
    if name == "generation_config.json":
        (base / name).write_text("{}")
    edit(base / name, auto_map={"AutoModelForCausalLM": "modeling.Evil"})
    refused(DataError, base, recipe, name, "auto_map")


def test_code_of_its_own_by_file(base: Path, recipe: Recipe) -> None:
    (base / "custom_generate").mkdir()
    (base / "custom_generate" / "generate.py").write_text("raise SystemExit")
    refused(DataError, base, recipe, "custom_generate/generate.py")


def test_an_adapter_is_no_base(base: Path, recipe: Recipe) -> None:
    (base / "adapter_config.json").write_text("{}")
    refused(DataError, base, recipe, "adapter")


def test_a_link_out_of_the_directory(base: Path, recipe: Recipe) -> None:
    (base / "notes").symlink_to("/etc/passwd")
    refused(DataError, base, recipe, "notes", "link")


def test_a_link_inside_the_directory(base: Path, recipe: Recipe) -> None:
    (base / "blob").write_bytes((base / "model.safetensors").read_bytes())
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to("blob")
    assert inspect(base, recipe).layers == 2


def test_a_cut_off_shard(sharded: Path, recipe: Recipe) -> None:
    shard = sharded / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(DataError, sharded, recipe, shard.name)


def test_a_missing_shard(sharded: Path, recipe: Recipe) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    refused(NoInputError, sharded, recipe, "model-00002-of-00002.safetensors")


def test_shards_without_their_index(sharded: Path, recipe: Recipe) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    refused(NoInputError, sharded, recipe, "model.safetensors.index.json")


@pytest.mark.parametrize("extra", ["model.safetensors", "consolidated.safetensors"])
def test_two_sets(sharded: Path, recipe: Recipe, extra: str) -> None:
    (sharded / extra).write_bytes((sharded / "model-00001-of-00002.safetensors").read_bytes())
    refused(DataError, sharded, recipe, extra)


@pytest.mark.parametrize("shard", ["../base/model-00001-of-00002.safetensors", "/etc/passwd"])
def test_an_index_that_points_elsewhere(sharded: Path, recipe: Recipe, edit: Edit, shard: str) -> None:
    edit(sharded / "model.safetensors.index.json", weight_map={"model.norm.weight": shard})
    refused(NoInputError, sharded, recipe, shard)


@pytest.mark.parametrize("weight_map", [{}, [], {"model.norm.weight": 1}])
def test_an_index_that_is_none(sharded: Path, recipe: Recipe, edit: Edit, weight_map: Any) -> None:
    edit(sharded / "model.safetensors.index.json", weight_map=weight_map)
    refused(DataError, sharded, recipe, "index.json")


def test_an_index_of_another_model(sharded: Path, recipe: Recipe) -> None:
    index = sharded / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["model.other.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(value))
    refused(DataError, sharded, recipe, "model.other.weight")


def test_weights_that_lack_a_block(base: Path, recipe: Recipe, edit: Edit) -> None:
    edit(base / "config.json", num_hidden_layers=4)
    refused(DataError, base, recipe, "4 layers", "2, 3")


def test_more_targets_than_there_are(base: Path, recipe: Recipe) -> None:
    lora = Lora(target_modules=("q_proj", "self_attn.k_proj", "q_porj", "embed_tokens"))
    refused(ConfigError, base, recipe.model_copy(update={"lora": lora}), "q_porj, embed_tokens match no linear")


def test_rows_longer_than_its_positions(base: Path, recipe: Recipe) -> None:
    refused(ConfigError, base, recipe.model_copy(update={"max_seq_length": 2049}), "2049", "2048")


def test_eight_bit_weights_that_call_themselves_unquantized(base: Path, recipe: Recipe) -> None:
    names = [f"model.layers.{block}.self_attn.q_proj.weight" for block in range(2)]
    entries = {
        name: {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [4 * index, 4 * index + 4]}
        for index, name in enumerate(names)
    }
    header = json.dumps(entries).encode()
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    refused(DataError, base, recipe, "F8_E4M3")


def test_a_quantized_base(base: Path, recipe: Recipe, edit: Edit) -> None:
    adapter_only = recipe.model_copy(update={"export": Export(gguf=())})
    edit(base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(DataError, base, recipe, "quantized", "16-bit")
    assert inspect(base, adapter_only).quantized
    refused(DataError, base, adapter_only.model_copy(update={"load_in_4bit": False}), "load_in_4bit")
    edit(base / "config.json", quantization_config={"quant_method": "gptq"})
    refused(DataError, base, adapter_only, "gptq")
