"""Two processes under the supervisor's own torchrun call, on a CPU with gloo in place of NCCL."""

from pathlib import Path

import pytest
import torch

from job.children import train_command
from job.contract.errors import BugError, InterruptedRun
from job.contract.events import Loaded, Saved, Step
from job.contract.events import Trained as TrainedEvent
from job.contract.plan import Plan
from job.scratch import Scratch
from tests.gpu_path.emulation import on_card
from tests.gpu_path.runs import LOSS, STEPS, Distance, Trained, distance, gpu_config, gpu_plan, run_ours, train


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "ranks")


@pytest.fixture
def plan(scratch: Scratch, base: Path) -> Plan:
    training = {"gradient_accumulation_steps": 1, "save_steps": 3}
    return gpu_plan(scratch, base, gpu_config(base, training=training, gpus=2))


def test_ranks_that_are_asked_to_stop_do_so_after_the_same_step(plan: Plan, scratch: Scratch) -> None:
    scratch.stop.touch()
    asked = plan.model_copy(update={"stop": str(scratch.stop)})
    with pytest.raises(InterruptedRun, match=f"after step 1 of {STEPS}"):
        run_ours(train_command(scratch.plan, plan.gpus), asked, scratch)
    assert random_states(scratch) == [0, 1]
    assert not scratch.adapter.exists()


def random_states(scratch: Scratch) -> list[int]:
    """The ranks whose random states are in the one checkpoint."""
    [checkpoint] = scratch.checkpoints.iterdir()
    return sorted(int(path.stem.removeprefix("rng_state_")) for path in checkpoint.glob("rng_state*"))


def test_ranks_that_do_not_train_together_are_a_bug(plan: Plan, scratch: Scratch) -> None:
    alone = train_command(scratch.plan, 1)
    with pytest.raises(BugError, match=r"1 processes train together, and compute\.gpus is 2"):
        run_ours(alone, plan, scratch)


# The last here, and the plain run first: the other worker makes `lora` meanwhile.
def test_two_ranks_train_as_one_that_accumulates(
    plain_lora: Trained, lora: Trained, plan: Plan, scratch: Scratch, figures: dict[str, Distance]
) -> None:
    if on_card() and torch.cuda.device_count() < 2:
        pytest.skip("needs two cards")
    rows = Path(plan.train_rows).stat().st_mtime_ns
    ranks = train(plan, scratch)
    figures["two ranks beside one"] = apart = distance(ranks, lora, plain_lora.start)
    assert apart.within(LOSS, LOSS), apart
    kinds = [type(event) for event in ranks.events]
    first_alone = [kinds.count(kind) for kind in (Loaded, Step, Saved, TrainedEvent)]
    assert first_alone == [1, STEPS, 1, 1], "the first rank alone tells"
    assert random_states(scratch) == [0, 1]
    assert {path.name for path in scratch.root.glob("*adapter*")} == {"adapter"}, "and alone writes"
    assert Path(plan.train_rows).stat().st_mtime_ns == rows, "the rows were prepared once"
    assert not list(scratch.trainer.rglob("*.arrow"))
