from pathlib import Path

import pytest

from job.base_model import BaseModel
from job.contract.config import Dataset, Recipe, Samples, Training
from job.contract.documents import TrainSummary


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        name="support-bot",
        base_model="s3://models/tiny/",
        dataset=Dataset(train=("s3://data/rows.jsonl", "hf://acme/chats@main:train")),
        training=Training(max_steps=3),
        samples=Samples(prompts=("Who are you?",)),
    )


@pytest.fixture
def base() -> BaseModel:
    return BaseModel(
        directory=Path("/scratch/run/inputs/base"),
        architecture="LlamaForCausalLM",
        hidden_size=8,
        layers=2,
        vocab_size=32,
        max_position_embeddings=2048,
        dtype="bfloat16",
        parameters=1560,
        weight_bytes=3120,
        modules=frozenset(),
        quantized=False,
        licence="apache-2.0",
        licence_name=None,
        ignored=(),
    )


@pytest.fixture
def summary() -> TrainSummary:
    return TrainSummary(
        steps=3,
        train_loss=1.25,
        eval_loss=None,
        tokens_seen=3000,
        tokens_trained=1200,
        trainable_parameters=123_456,
        total_parameters=1_234_567,
        effective_batch=8,
        seconds=12.5,
        device="cpu",
        dtype="float32",
        peak_memory_bytes=3 * 1024**3,
        memory_after_load_bytes=2 * 1024**3,
    )
