"""The training child, as the supervisor starts it, on a tiny real model."""

import hashlib
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from job.children import run_child, train_command
from job.contract.errors import BugError, DataError, GpuOutOfMemory, InterruptedRun, LocalIOError
from job.contract.events import Alive, Evaluated, Event, Loaded, Sample, SampleText, Saved, Step, Trained, Training
from job.contract.model import canonical_bytes
from job.contract.plan import Plan
from job.environment import environment
from job.scratch import Scratch
from tests.tiny import make_tiny_model, tiny_config, tiny_plan, write_rows

Train = Callable[[Plan, Scratch], list[Event]]


def train(plan: Plan, scratch: Scratch, events: list[Event] | None = None) -> list[Event]:
    """Runs the child to its end; its events, in order, also in `events`."""
    scratch.plan.write_bytes(canonical_bytes(plan))
    events = [] if events is None else events
    variables = environment(scratch.home, scratch.report, Path(plan.llama_cpp), plan.gpus, 2, (), os.environ)
    variables["PYTHONPATH"] = str(Path(__file__).parents[2])
    run_child(
        train_command(scratch.plan, plan.gpus), variables, scratch.work, scratch.events, events.append, lambda _: None
    )
    return events


def of_kind(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "base")


@pytest.fixture(scope="module")
def straight(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Scratch, list[Event], str]:
    """Twenty steps at once, with samples of which one cannot be answered; and what the base was before."""
    before = digest(base / "model.safetensors")
    scratch = Scratch(tmp_path_factory.mktemp("straight"))
    config = tiny_config(
        base,
        {"max_steps": 20, "save_steps": 10, "eval_steps": 10},
        samples={"prompts": ["How many coins?", "Unanswerable"], "max_new_tokens": 4},
    )
    plan = tiny_plan(scratch, base, config)
    unknown = 10**6  # a token that the vocabulary lacks
    plan = plan.model_copy(update={"sample_ids": (plan.sample_ids[0], (unknown,))})
    return scratch, train(plan, scratch), before


def test_the_loss_falls(straight: tuple[Scratch, list[Event], str]) -> None:
    steps = of_kind(straight[1], Step)
    losses = [step.loss for step in steps]
    assert [step.step for step in steps] == list(range(1, 21))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_the_adapter_is_trained_and_the_base_is_not(straight: tuple[Scratch, list[Event], str], base: Path) -> None:
    scratch, _, before = straight
    weights = load_file(scratch.adapter / "adapter_model.safetensors")
    outputs = {name: weight for name, weight in weights.items() if "lora_B" in name}
    assert len(outputs) == 2 * 7  # layers times projections; each starts at zero
    assert all(np.abs(weight).max() > 0 for weight in outputs.values())
    assert digest(base / "model.safetensors") == before


def test_the_adapter_carries_the_tokenizer_byte_by_byte(straight: tuple[Scratch, list[Event], str]) -> None:
    scratch = straight[0]
    for file in scratch.tokenizer.iterdir():
        assert (scratch.adapter / file.name).read_bytes() == file.read_bytes()


def test_what_was_measured_is_told(straight: tuple[Scratch, list[Event], str]) -> None:
    [loaded] = of_kind(straight[1], Loaded)
    [trained] = of_kind(straight[1], Trained)
    summary = trained.summary
    assert (loaded.effective_batch, loaded.linear_4bit, summary.device, summary.steps) == (8, 0, "cpu", 20)
    assert 0 < summary.tokens_trained < summary.tokens_seen
    assert [event.step for event in of_kind(straight[1], Evaluated)] == [10, 20, 20]
    last = max(at for at, event in enumerate(straight[1]) if isinstance(event, Evaluated))
    assert straight[1].index(trained) < last, "the adapter goes up before the last evaluation"


def test_samples_are_streamed_before_and_after_and_one_that_fails_loses_nothing(
    straight: tuple[Scratch, list[Event], str],
) -> None:
    events = straight[1]
    samples = of_kind(events, Sample)
    assert [(sample.model, bool(sample.error)) for sample in samples] == [
        ("base", False),
        ("base", True),
        ("tuned", False),
        ("tuned", True),
    ]
    streamed = "".join(event.text for event in of_kind(events, SampleText) if event.model == "tuned")
    assert streamed.strip() == samples[2].answer.strip()
    assert events.index(of_kind(events, Trained)[0]) < events.index(samples[2]), "the adapter comes first"


def test_ten_and_ten_resumed_steps_are_twenty_straight_ones_byte_for_byte(
    straight: tuple[Scratch, list[Event], str], base: Path, tmp_path: Path
) -> None:
    before, events, _ = straight
    [saved] = of_kind(events, Saved)
    scratch = Scratch(tmp_path / "resumed")
    plan = tiny_plan(scratch, base, tiny_config(base, {"max_steps": 20, "save_steps": 10, "eval_steps": 10}))
    resumed = train(plan.model_copy(update={"resume_from": saved.directory}), scratch)
    assert [step.step for step in of_kind(resumed, Step)] == list(range(11, 21))
    assert [step.loss for step in of_kind(resumed, Step)] == [step.loss for step in of_kind(events, Step)][10:]
    assert digest(scratch.adapter / "adapter_model.safetensors") == digest(before.adapter / "adapter_model.safetensors")


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_that_is_planted_in_a_checkpoint_does_not_run(
    straight: tuple[Scratch, list[Event], str], base: Path, tmp_path: Path, name: str
) -> None:
    [saved] = of_kind(straight[1], Saved)
    checkpoint = shutil.copytree(saved.directory, tmp_path / "checkpoint")
    assert not list(checkpoint.glob("*.bin")), "pickles that nobody reads are not kept"
    assert (checkpoint / name).exists(), "else it is not what the trainer loads"
    (checkpoint / name).write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    scratch = Scratch(tmp_path / "resumed")
    plan = tiny_plan(scratch, base, tiny_config(base, {"max_steps": 20}))
    with pytest.raises(DataError, match="more than tensors"):
        train(plan.model_copy(update={"resume_from": str(checkpoint)}), scratch)
    assert not (tmp_path / "ran").exists()


def test_training_that_is_asked_to_stop_leaves_a_checkpoint_and_no_adapter(base: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    plan = tiny_plan(scratch, base, tiny_config(base, {"max_steps": 20})).model_copy(update={"stop": str(scratch.stop)})
    scratch.stop.touch()
    events: list[Event] = []
    with pytest.raises(InterruptedRun, match="after step 1 of 20"):
        train(plan, scratch, events)
    [saved] = of_kind(events, Saved)
    assert (saved.step, Path(saved.directory, "trainer_state.json").exists()) == (1, True)
    assert not of_kind(events, Trained)
    assert not scratch.adapter.exists()


@pytest.mark.parametrize("steps", [20, 1], ids=["in training", "after the last step"])
def test_an_evaluation_that_is_asked_to_stop_ends_at_once(steps: int, base: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    config = tiny_config(base, {"max_steps": steps, "eval_steps": 1, "per_device_eval_batch_size": 1})
    plan = tiny_plan(scratch, base, config).model_copy(update={"stop": str(scratch.stop)})
    write_rows(scratch.rows / "eval.arrow", [([3] * 30, [3] * 30)] * 20_000)
    events: list[Event] = []

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, Step):  # what it does next is to evaluate
            scratch.stop.touch()

    is_last = steps == 1
    with nullcontext() if is_last else pytest.raises(InterruptedRun, match="after step 1 of 20"):
        end_of("from job import train; train.train(plan, teller)", plan, scratch, on_event)
    assert [step.step for step in of_kind(events, Step)] == [1]
    assert not of_kind(events, Evaluated)
    assert [saved.step for saved in of_kind(events, Saved)] == ([] if is_last else [1])
    assert scratch.adapter.exists() == is_last


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = np.inf
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    scratch = Scratch(tmp_path / "scratch")
    with pytest.raises(BugError, match="the loss is nan at step 1"):
        train(tiny_plan(scratch, base, tiny_config(base, {"max_steps": 2})), scratch)
    assert not scratch.adapter.exists()


def test_scratch_that_is_emptied_is_the_disks_fault(base: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    plan = tiny_plan(scratch, base, tiny_config(base, {"max_steps": 2}))
    work = f"import shutil; shutil.rmtree({str(scratch.root)!r}); open(plan.train_rows)"
    with pytest.raises(LocalIOError, match=r"scratch was emptied: .*No such file"):
        end_of(work, plan, scratch)


def test_where_no_step_is_logged_it_tells_that_it_goes_on_and_the_last_step(base: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    plan = tiny_plan(scratch, base, tiny_config(base, {"max_steps": 2, "logging_steps": 10}))
    events: list[Event] = []
    work = (
        "from job import train; train._PULSE_SECONDS = 0; train.train(plan, teller)"  # each batch takes less than 1 s
    )
    end_of(work, plan, scratch, events.append)
    [step], [trained], [evaluated] = (of_kind(events, kind) for kind in (Step, Trained, Evaluated))
    assert step.step == 2
    assert trained.summary.train_loss > 0
    start, middle, end = events.index(of_kind(events, Training)[0]), events.index(trained), events.index(evaluated)
    assert len(of_kind(events[start:middle], Alive)) == 2 * 4, "one for each batch of training"
    assert len(of_kind(events[middle:end], Alive)) == 5, "one for each batch of the evaluation"


def test_rows_that_the_trainer_would_cut_end_the_run(base: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    plan = tiny_plan(scratch, base, tiny_config(base, {"max_steps": 2}))
    write_rows(scratch.rows / "train.arrow", [(list(range(3, 203)), list(range(3, 203)))] * 8)
    with pytest.raises(BugError, match="the trainer changed the rows"):
        train(plan, scratch)


def end_of(work: str, plan: Plan, scratch: Scratch, hear: Callable[[Event], None] = lambda _: None) -> None:
    """Runs a child whose work is a line of Python on `plan`, by the edge that the training child has."""
    scratch.plan.write_bytes(canonical_bytes(plan))
    code = f"import sys, torch\nfrom job.telling import run_child\ndef work(plan, teller):\n    {work}\nsys.exit(run_child(work, sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(scratch.plan)]
    variables = environment(scratch.home, scratch.report, Path(plan.llama_cpp), 0, 2, (), os.environ)
    variables["PYTHONPATH"] = str(Path(__file__).parents[2])
    run_child(command, variables, scratch.work, scratch.events, hear, lambda _: None)


def test_a_base_that_is_not_4_bit_as_asked_ends_the_run(base: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    plan = tiny_plan(scratch, base, tiny_config(base, {"max_steps": 2}))
    asked = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"load_in_4bit": True})})
    work = (
        "from job import train; from peft import LoraConfig, get_peft_model; from transformers import AutoModelForCausalLM; "
        "model = get_peft_model(AutoModelForCausalLM.from_pretrained(plan.base_model), "
        "LoraConfig(target_modules=list(plan.recipe.lora.target_modules))); train.describe(model, plan, torch.float32)"
    )
    with pytest.raises(BugError, match="only 0 of 14 projections are 4-bit"):
        end_of(work, asked, scratch)


def test_a_full_gpu_is_told_with_the_key_to_lower(base: Path, tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    plan = tiny_plan(scratch, base, tiny_config(base, {"max_steps": 2}))
    with pytest.raises(GpuOutOfMemory, match="Tried to allocate 2 GiB") as raised:
        end_of("raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')", plan, scratch)
    assert "load_in_4bit" in raised.value.resolution
