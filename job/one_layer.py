"""A base model cut down to its first block: with it the whole export is tried out before training, in a minute."""

import json
import os
import re
from pathlib import Path
from typing import Any

from job.weights import WEIGHTS, complete_set, read_header

_BLOCK = re.compile(r"(?:^|\.)(\d+)\.")
# How many of the last blocks share keys and values with an earlier one.
_SHARED = "num_kv_shared_layers"


def write_one_layer(base: Path, directory: Path) -> None:
    """Writes config.json and model.safetensors of the base's embeddings, first block, norm and head, weights unchanged.

    Raises:
        NoInputError, DataError: as `job.weights.complete_set` and `read_header`.
    """
    directory.mkdir(parents=True)
    config = json.loads((base / "config.json").read_bytes())
    (directory / "config.json").write_text(json.dumps(one_layer_config(config), indent=2))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    places: list[tuple[Path, int, int]] = []  # file, first byte, length
    end = 0
    for path in (base / shard for shard in complete_set(base)):
        with path.open("rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
        for name, tensor in read_header(path).items():
            if is_in_one_layer(name):
                offsets = [end, end := end + tensor.size]
                header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
                places.append((path, start + tensor.data_offsets[0], tensor.size))
    text = json.dumps(header).encode()
    with (directory / WEIGHTS).open("wb", buffering=0) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for path, first, size in places:
            with path.open("rb") as file:
                while size:
                    sent = os.sendfile(out.fileno(), file.fileno(), first, size)
                    first, size = first + sent, size - sent


def is_in_one_layer(name: str) -> bool:
    """Whether a tensor stands outside the blocks or in the first: a name's first number is its block's."""
    block = _BLOCK.search(name)
    return block is None or int(block[1]) == 0


def one_layer_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of the same model with one block; lists that have an entry for each block keep the first."""
    layers = config.get("num_hidden_layers")

    def cut(value: Any) -> Any:
        if isinstance(value, dict):  # a model of several parts has a config for each
            return one_layer_config(value)
        return value[:1] if layers and isinstance(value, list) and len(value) == layers else value

    ours = {"num_hidden_layers": 1, _SHARED: 0}
    return {key: ours[key] if key in ours else cut(value) for key, value in config.items()}
