"""The base model's directory, checked before anything is loaded from it: whole, safe, and fit for the config.

Refused: pickled weights (loading one runs its author's code), code of the model's own, weights that are incomplete or
there twice, and links that lead out of the directory. The chat template is checked by `job.dataset`.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import orjson
import pydantic

from job.contract.config import Recipe
from job.contract.errors import ConfigError, DataError, NoInputError
from job.weights import PICKLE_SUFFIXES, Tensor, check_set, complete_set, read_tensors, some

CONFIG = "config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_TRAINABLE_QUANTIZATION = "bitsandbytes"
_MAX_JSON_BYTES = 16 * 1024**2
_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")
_LICENCE = re.compile(r"^(license|license_name):[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class BaseModel:
    """What is known of a base model without loading it."""

    directory: Path
    architecture: str
    """The class that transformers loads it as, `LlamaForCausalLM`."""
    hidden_size: int
    layers: int
    vocab_size: int | None
    max_position_embeddings: int | None
    """The longest sequence it was made for, in tokens; None where config.json does not say."""
    dtype: str
    """The type that most of its weights are stored in."""
    parameters: int
    """Elements of its weights; of a quantized base, as they are packed."""
    weight_bytes: int
    """Of the weights' files."""
    modules: frozenset[str]
    """The linear layers inside its blocks, by dotted name: what an adapter can be put on."""
    quantized: bool
    """Whether its weights are stored in 4 bits already."""
    licence: str | None
    """Its identifier as the model card gives it (`apache-2.0`); `other` has a name; None where nothing is said."""
    licence_name: str | None
    """The name beside `other`, or the licence file's first line where no card says more."""
    ignored: tuple[str, ...]
    """Pickled files beside the weights, which nothing loads."""


class _Config(pydantic.BaseModel):
    """The keys of config.json that are read here."""

    model_config = pydantic.ConfigDict(strict=True)

    architectures: list[str] = pydantic.Field(min_length=1)
    hidden_size: int = pydantic.Field(ge=1)
    num_hidden_layers: int = pydantic.Field(ge=1)
    vocab_size: int | None = pydantic.Field(default=None, ge=1)
    max_position_embeddings: int | None = pydantic.Field(default=None, ge=1)
    quantization_config: dict[str, Any] | None = None

    @property
    def quantized_by(self) -> str | None:
        """The method by which its weights are quantized; None of 16-bit ones."""
        if self.quantization_config is None:
            return None
        return str(self.quantization_config.get("quant_method", "an unnamed method"))


def inspect(directory: Path, recipe: Recipe) -> BaseModel:
    """The facts of the base model in `directory`, once it is seen to be whole, safe and fit for the recipe.

    Raises:
        NoInputError: a file is missing.
        DataError: a file is damaged, or the model is one that is not loaded: pickled, with code of its own,
            there twice, an adapter, quantized where 16 bits are needed.
        ConfigError: the recipe's target modules or its sequence length do not fit this model.
    """
    files = _safe_files(directory)
    config = _read_config(directory)
    tensors = read_tensors(directory)
    _check_blocks(tensors, config.num_hidden_layers)
    licence, licence_name = _licence(directory)
    model = BaseModel(
        directory=directory,
        architecture=config.architectures[0],
        hidden_size=config.hidden_size,
        layers=config.num_hidden_layers,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        dtype=_main_dtype(tensors),
        parameters=sum(tensor.elements for tensor in tensors.values()),
        weight_bytes=sum((directory / shard).stat().st_size for shard in complete_set(directory)),
        modules=_linear_modules(tensors),
        quantized=config.quantized_by is not None,
        licence=licence,
        licence_name=licence_name,
        ignored=tuple(name for name in files if PurePath(name).suffix in PICKLE_SUFFIXES),
    )
    _check_precision(model, config, recipe)
    _check_recipe(model, recipe)
    return model


def check_before_weights(names: Collection[str], directory: Path) -> None:
    """Refuse a base model that no recipe could be trained on, as far as that is seen without its weights.

    Args:
        names: of all its files.
        directory: holds those that are no weights.

    Raises:
        NoInputError, DataError: as `inspect`.
    """
    _check_names(names)
    method = _read_config(directory).quantized_by
    if method not in (None, _TRAINABLE_QUANTIZATION):
        raise DataError(
            f"the base model is quantized ({method}), and only {_TRAINABLE_QUANTIZATION} can be trained on",
            "Take the 16-bit weights of this model.",
        )
    check_set(names, directory)


def _safe_files(directory: Path) -> tuple[str, ...]:
    """The directory's files, relative and sorted; links out of it, code and adapters are refused."""
    if not directory.is_dir():
        raise NoInputError(f"the base model {directory} is not a directory", "Name a directory that holds one.")
    root = directory.resolve()
    paths = sorted(directory.rglob("*"))
    for path in paths:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise DataError(
                f"the base model's {path.relative_to(directory)} is a link that leads out of its directory",
                "Copy the model with its links followed: cp -rL.",
            )
    files = tuple(str(path.relative_to(directory)) for path in paths if path.is_file())
    _check_names(files)
    return files


def _check_names(files: Collection[str]) -> None:
    """Refuse code and adapters, and what lacks a tokenizer or its config.json."""
    if code := [name for name in files if name.endswith(".py")]:
        raise DataError(
            f"the base model brings code of its own ({some(code)}), which is never run",
            "Take a base that transformers knows by itself, without .py files.",
        )
    if adapter := [name for name in files if name in ("adapter_config.json", "adapter_model.safetensors")]:
        raise DataError(
            f"the base model's directory holds an adapter ({some(adapter)})",
            "Keep adapters elsewhere; to train on from one, merge it first and name the merged model.",
        )
    if missing := [name for name in (CONFIG, *TOKENIZER_FILES) if name not in files]:
        raise NoInputError(
            f"the base model has no {' and no '.join(missing)}",
            "Take a directory as save_pretrained of model and tokenizer writes it.",
        )


def _read_config(directory: Path) -> _Config:
    """config.json's facts; for a model of several parts, those of its language model."""
    for path in sorted(directory.glob("*config.json")):
        if "auto_map" in _read_object(path):
            raise DataError(
                f"the base model's {path.name} asks for code of its own (auto_map), which is never run",
                "Take a base that transformers knows by itself; where it does know this one, remove auto_map.",
            )
    config = _read_object(directory / CONFIG)
    text = config.get("text_config")
    try:
        return _Config.model_validate(config | text if isinstance(text, dict) else config)
    except pydantic.ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise DataError(f"the base model's config.json cannot be used: {problems}") from error


def _read_object(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise DataError(f"the base model's {path.name} is larger than {_MAX_JSON_BYTES} bytes")
    try:
        value = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise DataError(
            f"the base model's {path.name} is not JSON: {error}", "Put the file there once more."
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"the base model's {path.name} is not a JSON object", "Put the file there once more.")
    return value


def _check_blocks(tensors: dict[str, Tensor], layers: int) -> None:
    """Refuse weights that lack a block: transformers would fill it with noise and only warn."""
    found = {int(block[1]) for name in tensors if (block := _BLOCK.search(name))}
    if missing := [str(block) for block in range(layers) if block not in found]:
        raise DataError(
            f"the base model's config.json says {layers} layers, and the weights lack {some(missing)}",
            "config.json and weights are of two models: put all of them there once more.",
        )


def _linear_modules(tensors: dict[str, Tensor]) -> frozenset[str]:
    """Matrices inside the numbered blocks; embeddings and the output head stand outside."""
    return frozenset(
        name.removesuffix(".weight")
        for name, tensor in tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2 and _BLOCK.search(name)
    )


def _main_dtype(tensors: dict[str, Tensor]) -> str:
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    most = max(sizes, key=lambda dtype: sizes[dtype])
    return _DTYPES.get(most, most)


def _check_precision(model: BaseModel, config: _Config, recipe: Recipe) -> None:
    """16-bit weights, or bitsandbytes' 4 bits where nothing is merged: a merge reads the 16-bit weights again."""
    method = config.quantized_by
    if not model.quantized:
        if model.dtype not in _DTYPES.values():
            raise DataError(f"the base model's weights are {model.dtype}", "Take the 16-bit weights of this model.")
    elif recipe.export.gguf or recipe.export.merged:
        raise DataError(
            f"the base model is quantized ({method}), and a merged model or GGUF is made from 16-bit weights",
            "Take the 16-bit weights of this model: with load_in_4bit they are quantized as they are loaded.",
        )
    elif method != _TRAINABLE_QUANTIZATION or not recipe.load_in_4bit:
        raise DataError(
            f"the base model is quantized ({method}), and only {_TRAINABLE_QUANTIZATION} with load_in_4bit can be trained on",
            "Take the 16-bit weights of this model.",
        )


def _check_recipe(model: BaseModel, recipe: Recipe) -> None:
    unmatched = [
        target
        for target in recipe.lora.target_modules
        if not any(name == target or name.endswith(f".{target}") for name in model.modules)
    ]
    if unmatched:
        there = sorted({name.rpartition(".")[2] for name in model.modules})
        raise ConfigError(
            f"lora.target_modules: {', '.join(unmatched)} match no linear layer of {model.architecture}",
            f"Choose from {', '.join(there[:20])}.",
        )
    longest = model.max_position_embeddings
    if longest is not None and recipe.max_seq_length > longest:
        raise ConfigError(
            f"max_seq_length: {recipe.max_seq_length} is more than the base model's {longest} positions",
            "Lower it, or take a base whose config.json already scales its RoPE to that length.",
        )


def _licence(directory: Path) -> tuple[str | None, str | None]:
    """Identifier and name, by the card's front matter, else by the licence file."""
    card = directory / "README.md"
    if card.is_file():
        found = dict(_LICENCE.findall(_front_matter(card)))
        if "license" in found:
            return found["license"], found.get("license_name")
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md"):
        if (path := directory / name).is_file():
            lines = (line.strip("# \t\r") for line in path.read_text("utf-8", "replace")[:10_000].split("\n"))
            return "other", next((line[:100] for line in lines if line), None)
    return None, None


def _front_matter(card: Path) -> str:
    text = card.read_text("utf-8-sig", "replace")[:100_000]
    return text.split("\n---", 1)[0] if text.startswith("---\n") else ""
