"""Two processes under the supervisor's own torchrun call, gloo in place of NCCL."""

from pathlib import Path

from job.contract.events import Loaded, Step
from job.contract.events import Trained as TrainedEvent
from job.scratch import Scratch
from tests.gpu_path.runs import STEPS, Trained, distance, gpu_config, gpu_plan, train
from tests.gpu_path.test_training import ADAPTER, LOSS


def test_two_ranks_train_as_one_that_accumulates(
    lora: Trained, plain_lora: Trained, base: Path, tmp_path: Path
) -> None:
    scratch = Scratch(tmp_path / "ranks")
    config = gpu_config(base, training={"gradient_accumulation_steps": 1})
    plan = gpu_plan(scratch, base, config).model_copy(update={"gpus": 2})
    ranks = train(plan, scratch)
    by_turns = [batch for pair in zip(ranks.batches[:STEPS], ranks.batches[STEPS:], strict=True) for batch in pair]
    assert by_turns == lora.batches, "each step sees the same rows"
    apart = distance(ranks, lora, plain_lora.start)
    assert max(apart.loss, apart.grad_norm) <= LOSS, apart
    assert apart.adapter <= ADAPTER, apart
    kinds = [type(event) for event in ranks.events]
    assert (kinds.count(Loaded), kinds.count(Step), kinds.count(TrainedEvent)) == (1, STEPS, 1), (
        "the first rank alone tells"
    )
