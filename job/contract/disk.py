"""How much scratch a run needs, worked out from its config and the sizes of its inputs: before a GPU is asked for, and on it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from job.contract.config import Quantization, Recipe, RunConfig
from job.contract.config_file import Problem, line_of
from job.contract.errors import ConfigError

GIB = 1024**3

# Of Llama 3.1 8B, by the table of llama.cpp's tools/quantize/README.md. Small models need more: matrices whose rows are
# no multiple of 256 stay at 8 bits or more, and the embedding, kept at 6 or 8, is a larger share of them.
BITS_PER_WEIGHT: dict[Quantization, float] = {
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "q8_0": 8.5,
    "q6_k": 6.57,
    "q5_k_m": 5.7,
    "q4_k_m": 4.89,
}
_SLACK_BYTES = GIB  # compiled kernels, logs, the one-layer model, the report
_SLACK_SHARE = 0.05  # of the rest
CHECKPOINT_BYTES = 12
"""A parameter of the adapter in a checkpoint: its weight and AdamW's two moments, 4 bytes each."""
_CHECKPOINTS_AT_ONCE = 3  # the two that training keeps, and one being written


@dataclass(frozen=True)
class DiskNeed:
    """What a run lays down on scratch, in bytes, by what it is for. Everything stays until the run ends."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        return ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items() if size >= 0.05 * GIB)


def disk_need(recipe: Recipe, weight_bytes: int, base_bytes: int, dataset_bytes: int) -> DiskNeed:
    """The scratch that a run needs.

    Args:
        recipe: decides what is made.
        weight_bytes: size of the base's safetensors, which are taken to be of 16 bits.
        base_bytes: what is downloaded of the base; 0 where it is used in place.
        dataset_bytes: what is downloaded of the dataset; rows need space where it is used in place, too.
    """
    weights = weight_bytes / 2
    # The adapter grows with the model's surface. Measured at r 16: 135M 4.9M (factor 1.16), 0.5B 8.8M (0.88),
    # 3.2B 24.3M (0.70), 8B 41.9M (0.65), 70B 207M (0.76).
    adapter = 1.2 * recipe.lora.r * weights ** (2 / 3)
    parts = {
        "base model": base_bytes,
        # As downloaded, and as rows: a token and its label take 8 bytes, and a token is some 4 bytes of text.
        "dataset": 4 * dataset_bytes,
        "checkpoints": int(_CHECKPOINTS_AT_ONCE * CHECKPOINT_BYTES * adapter),
        "adapter": int(2 * 4 * adapter),
    }
    if recipe.export.gguf or recipe.export.merged:
        parts["merged model"] = weight_bytes
    if any(BITS_PER_WEIGHT[quantization] < 16 for quantization in recipe.export.gguf):
        parts["16-bit GGUF to quantize from"] = weight_bytes
    for quantization in recipe.export.gguf:
        parts[f"GGUF {quantization}"] = int(weights * BITS_PER_WEIGHT[quantization] / 8)
    parts["slack"] = int(_SLACK_BYTES + _SLACK_SHARE * sum(parts.values()))
    return DiskNeed(parts)


def check_scratch(config: RunConfig, need: DiskNeed, text: bytes, source: str) -> None:
    """Refuse a config whose `compute.scratch_gib` does not hold what the run lays down.

    Args:
        config: the whole of it.
        need: of its run.
        text: the file's content.
        source: its name, for messages.

    Raises:
        ConfigError: with the key's line, and the need by part.
    """
    asked = config.compute.scratch_gib
    if asked * GIB < need.total:
        told = f"{asked:g} GiB, and the run needs {need.total / GIB:.1f} (in GiB: {need})"
        problem = Problem("compute.scratch_gib", line_of("compute.scratch_gib", text, source), told)
        raise ConfigError(
            f"{source}: {problem}",
            f"Set it to {math.ceil(need.total / GIB)} or more, or ask for fewer files in export.",
        )
