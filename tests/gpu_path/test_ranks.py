"""Two processes under the supervisor's own torchrun call, on a CPU with gloo in place of NCCL."""

from pathlib import Path

import pytest
import torch

from job.contract.events import Loaded, Step
from job.contract.events import Trained as TrainedEvent
from job.scratch import Scratch
from tests.gpu_path.emulation import on_card
from tests.gpu_path.runs import STEPS, Distance, Trained, distance, gpu_config, gpu_plan, train
from tests.gpu_path.test_training import LOSS


def test_two_ranks_train_as_one_that_accumulates(
    lora: Trained, plain_lora: Trained, base: Path, figures: dict[str, Distance], tmp_path: Path
) -> None:
    if on_card() and torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    scratch = Scratch(tmp_path / "ranks")
    config = gpu_config(base, training={"gradient_accumulation_steps": 1})
    plan = gpu_plan(scratch, base, config).model_copy(update={"gpus": 2})
    ranks = train(plan, scratch)
    figures["two ranks beside one"] = apart = distance(ranks, lora, plain_lora.start)
    assert apart.within(LOSS, LOSS), apart
    kinds = [type(event) for event in ranks.events]
    assert (kinds.count(Loaded), kinds.count(Step), kinds.count(TrainedEvent)) == (1, STEPS, 1), (
        "the first rank alone tells"
    )
