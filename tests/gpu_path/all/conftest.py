"""A base of 16 bits, as users have it."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="session")
def base16(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpu16") / "base"
    shutil.copytree(base, directory)
    weights = load_file(base / "model.safetensors")
    rounded = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_file(rounded, directory / "model.safetensors", metadata={"format": "pt"})
    config = directory / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    return directory
