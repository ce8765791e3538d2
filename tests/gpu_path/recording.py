"""What a training run is observed by, and started from, in every backend alike."""

import atexit
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gpu_path.replacing import replace

launches: Counter[str] = Counter()
"""Launches of each kernel."""
hits: Counter[str] = Counter()
"""How often a spoilt kernel was met."""
batches: list[str] = []
"""A hash of the ids and labels of each micro batch, in order."""


def install() -> None:
    """Records batches and launches into the file that GPU_PATH_RECORD names, and starts every adapter from the same values."""
    from unsloth import FastLanguageModel

    def started(*given: Any, **named: Any) -> Any:
        model = get_peft_model(*given, **named)
        start_adapter(model)
        return model

    get_peft_model = replace(FastLanguageModel, "get_peft_model", staticmethod(started))
    record_batches(batches.append)
    if name := os.environ.get("GPU_PATH_RECORD"):
        rank = os.environ.get("RANK", "0")
        atexit.register(_write, Path(f"{name}.{rank}.json"))


def _write(path: Path) -> None:
    path.write_text(json.dumps({"batches": batches, "launches": launches, "hits": hits}))


def start_adapter(model: Any, seed: int = 11) -> None:
    """The same start in every backend, tensor by tensor. B is not zero, so that A has a gradient at once."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                draw = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draw))


def record_batches(record: Callable[[str], object]) -> None:
    """Hands on a hash of the ids and labels of what the trainer hands to its collator for training."""
    from transformers import Trainer

    def recorded(self: Any) -> Any:
        collate = self.data_collator

        def hashed(features: Any) -> Any:
            rows = [([int(i) for i in row["input_ids"]], [int(i) for i in row["labels"]]) for row in features]
            record(hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16])
            return collate(features)

        self.data_collator = hashed
        try:
            return get_train_dataloader(self)
        finally:
            self.data_collator = collate

    get_train_dataloader = replace(Trainer, "get_train_dataloader", recorded)
