"""The configs of examples/ are valid, and the reference run's holds the course's values."""

from pathlib import Path

import pytest
import yaml

from job.contract.config_file import parse_config

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))
REFERENCE = EXAMPLES / "llama-3.2-3b-finetome.yaml"

# As the course material gives them; `finetome` is the data's name on the hub.
COURSE = {
    "base_model": "hf://unsloth/Llama-3.2-3B-Instruct",
    "max_seq_length": 2048,
    "dtype": "auto",
    "load_in_4bit": True,
    "chat_template": "llama-3.1",
    "dataset.train": "hf://mlabonne/FineTome-100k:train",
    "dataset.format": "sharegpt",
    "lora.r": 16,
    "lora.lora_alpha": 16,
    "lora.lora_dropout": 0,
    "lora.bias": "none",
    "lora.target_modules": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "lora.use_gradient_checkpointing": "unsloth",
    "lora.random_state": 42,
    "lora.use_rslora": False,
    "lora.loftq_config": None,
    "training.per_device_train_batch_size": 2,
    "training.gradient_accumulation_steps": 4,
    "training.warmup_steps": 5,
    "training.max_steps": 60,
    "training.learning_rate": 2e-4,
    "training.lr_scheduler_type": "linear",
    "training.optim": "adamw_8bit",
    "training.weight_decay": 0.01,
    "training.seed": 42,
    "training.packing": False,
    "training.train_on_responses_only": True,
    "samples.prompts": ("Continue the fibonnaci sequence: 1, 1, 2, 3, 5, 8,",),
    "samples.max_new_tokens": 128,
    "samples.temperature": 1.5,
    "samples.min_p": 0.1,
    "export.gguf": ("f16",),
}


def test_every_example_is_valid() -> None:
    assert len(CONFIGS) == 2
    assert [parse_config(path.read_bytes(), path.name).name for path in CONFIGS] == ["demo", "llama-3-2-3b-finetome"]


@pytest.mark.parametrize(("key", "value"), COURSE.items())
def test_the_reference_run_has_the_courses_value(key: str, value: object) -> None:
    config: object = parse_config(REFERENCE.read_bytes(), REFERENCE.name)
    written: object = yaml.safe_load(REFERENCE.read_text("utf-8"))
    for name in key.split("."):
        config = getattr(config, name)
        assert isinstance(written, dict)
        assert name in written, "the example writes out every value of the course"
        written = written[name]
    assert config == value
