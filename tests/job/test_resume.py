"""A run over several pods: killed, told to stop, and started again, it comes to what one that nobody disturbed does."""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from job.contract.documents import Checkpoint, Result
from job.contract.model import sha256_hex
from job.storage import Storage
from job.storage.opening import open_storage
from tests.job.conftest import Pod, wait_for_child, wait_for_training
from tests.reliability.starts import SOAK, kill, log_of

Make = Callable[..., Pod]
Log = list[dict[str, Any]]

SITE = Path(__file__).parent / "site"
STEPS, SAVE_STEPS = 120, 10
BATCHES = 4
"""Micro batches of a step."""
TRAINING = {"max_steps": STEPS, "save_steps": SAVE_STEPS, "gradient_accumulation_steps": BATCHES}
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1}


@dataclass(frozen=True)
class Undisturbed:
    """What the run comes to when nothing happens to it."""

    result: Result
    log: Log
    seconds: float


@pytest.fixture(scope="module")
def trained() -> list[Undisturbed]:
    """Empty until the first test has needed it."""
    return []


@pytest.fixture
def undisturbed(pod: Make, trained: list[Undisturbed]) -> Undisturbed:
    """The run in one start, trained once for all tests."""
    if not trained:
        start = watched(pod(TRAINING, lora=LORA))
        start = replace(start, root=f"{start.root}-undisturbed")
        began = time.monotonic()
        ended = start.start()
        assert ended.code == 0, ended.printed
        seconds = time.monotonic() - began
        trained.append(Undisturbed(result_of(open_storage(start.root)), ended.log, seconds))
        assert len(batches_of(ended.log)) >= STEPS * BATCHES
    return trained[0]


def watched(pod: Pod) -> Pod:
    """The same, whose training prints which rows it takes."""
    return replace(pod, variables={**pod.variables, "PYTHONPATH": f"{pod.package}{os.pathsep}{SITE}"})


def assert_as_undisturbed(start: Pod, logs: list[Log], undisturbed: Undisturbed) -> None:
    """A run of several starts came to the same adapter, by the same rows in the same order, learning rates and losses."""
    one, other = result_of(open_storage(start.root)), undisturbed.result
    assert weights(one) == weights(other)
    assert (one.train.steps, one.train.train_loss) == (STEPS, other.train.train_loss)
    assert (one.train.tokens_seen, one.train.tokens_trained) == (other.train.tokens_seen, other.train.tokens_trained)
    assert {step for log in logs for step in steps_of(log)} == set(steps_of(undisturbed.log))
    whole = batches_of(undisturbed.log)
    for log in logs:
        taken = batches_of(log)
        assert len(taken) >= BATCHES * len(steps_of(log))
        for at in (BATCHES * line["step"] for line in log if line["event"] == "training"):
            assert taken == whole[at : at + len(taken)]


def steps_of(log: Log) -> list[tuple[int, float, float]]:
    """Each logged step, its loss and its learning rate."""
    return [(line["step"], line["loss"], line["learning_rate"]) for line in log if line["event"] == "step"]


def batches_of(log: Log) -> list[str]:
    """A hash of the rows of each micro batch that was made ready; the last one of a start may not have been used."""
    said = [line["text"] for line in log if line["event"] == "said"]
    return [text for text in said if text.startswith("batch ")]


def complete(storage: Storage) -> Iterator[tuple[str, Checkpoint]]:
    """Every complete checkpoint and its attempt."""
    for stat in storage.list("runs/"):
        if stat.key.endswith("/complete.json") and (found := storage.get(stat.key)):
            yield stat.key.split("/")[3], Checkpoint.model_validate_json(found[0])


def is_whole(storage: Storage, checkpoint: Checkpoint, directory: Path) -> bool:
    for file in checkpoint.files:
        stat = storage.head(file.key)
        assert stat
        storage.download(stat, directory / file.key)
    return all(sha256_hex((directory / file.key).read_bytes()) == file.sha256 for file in checkpoint.files)


def result_of(storage: Storage) -> Result:
    [key] = [stat.key for stat in storage.list("runs/") if stat.key.endswith("/result.json")]
    found = storage.get(key)
    assert found
    return Result.model_validate_json(found[0])


def wait_for_checkpoint(storage: Storage, process: "subprocess.Popen[str]") -> int:
    deadline = time.monotonic() + 300
    while not (found := list(complete(storage))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found[0][1].step


def weights(result: Result) -> str:
    [file] = [file for file in result.artifacts.lora if file.key.endswith("/adapter_model.safetensors")]
    return file.sha256


def test_a_run_that_is_killed_and_told_to_stop_comes_to_the_same_adapter(
    pod: Make, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    start = watched(pod(TRAINING, lora=LORA))
    storage = open_storage(start.root)

    # Killed once a checkpoint is in the store.
    first = start.process()
    child = wait_for_child(first)
    wait_for_checkpoint(storage, first)
    first.kill()
    os.killpg(child, signal.SIGKILL)
    printed, _ = first.communicate()
    kept = max(checkpoint.step for _, checkpoint in complete(storage))
    assert kept < STEPS

    # Told to stop while it trains.
    second = start.process()
    wait_for_training(start, 2)
    second.send_signal(signal.SIGTERM)
    stopped = start.end(second)
    assert (stopped.code, stopped.outcome.name, stopped.outcome.stage) == (75, "INTERRUPTED", "train")
    [resumed] = stopped.events("resumed")
    assert (resumed["step"], resumed["from_attempt"]) == (kept, 1)
    assert stopped.events("step")[0]["step"] == kept + 1
    last = max((each for number, each in complete(storage) if number == "2"), key=lambda each: each.step)
    assert kept < last.step == stopped.events("step")[-1]["step"]
    assert is_whole(storage, last, tmp_path / "checkpoint")
    assert not any(stat.key.endswith(("result.json", "published.json")) for stat in storage.list("runs/"))

    third = start.start()
    assert third.code == 0, third.printed
    [resumed] = third.events("resumed")
    assert (resumed["step"], resumed["from_attempt"]) == (last.step, 2)
    assert [line["step"] for line in third.events("step")] == list(range(last.step + 1, STEPS + 1))

    assert result_of(storage).attempt == 3
    assert_as_undisturbed(start, [log_of(printed), stopped.log, third.log], undisturbed)


@pytest.mark.skipif(not SOAK, reason="`make soak`: each start imports the training stack")
@pytest.mark.timeout(3600)
def test_a_run_that_is_told_to_stop_at_ten_moments_comes_to_the_same_adapter(
    pod: Make, undisturbed: Undisturbed
) -> None:
    draw, told, runs = random.Random(1), 0, 0
    fresh, logs = watched(pod(TRAINING, lora=LORA)), list[Log]()
    start = fresh
    while told < 10:
        process = start.process()
        with suppress(subprocess.TimeoutExpired):  # what it prints is read meanwhile, or it would wait for that
            process.communicate(timeout=draw.uniform(0, undisturbed.seconds))
        told += process.poll() is None
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in out + err
        assert process.returncode in (75, 0, -signal.SIGTERM), "the last of these: before Python listens"
        logs.append(log_of(out))
        if process.returncode == 0:  # the next moment is one of another run
            assert_as_undisturbed(start, logs, undisturbed)
            runs, logs = runs + 1, []
            start = replace(fresh, root=f"{fresh.root}-{runs}")
    last = start.start()
    assert last.code == 0, last.printed
    assert_as_undisturbed(start, [*logs, last.log], undisturbed)


Reached = Callable[[Log], bool]


def in_stage(name: str, event: str = "stage") -> Reached:
    """At the first such event of a stage."""
    return lambda log: any(line.get("stage") == name for line in log) and log[-1]["event"] == event


def trained_for(steps: int) -> Reached:
    """After further steps, and with a checkpoint in the store where there were enough of them for one."""

    def reached(log: Log) -> bool:
        events = [line["event"] for line in log]
        return events.count("step") >= steps and (steps < SAVE_STEPS or "checkpoint kept" in events)

    return reached


def killed(start: Pod, reached: Reached) -> Log:
    """The log of a start that is killed, and its children with it, when it has come to a point."""
    process, log = start.process(), []
    assert process.stdout
    for line in process.stdout:
        log.append(json.loads(line))
        if reached(log):
            kill(process)
            break
    out, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, (log, err)
    return log + log_of(out)


@pytest.mark.timeout(4 * 3600 if SOAK else 3600)  # each start imports the training stack
def test_a_run_that_is_killed_in_every_stage_comes_to_the_same_adapter(pod: Make, undisturbed: Undisturbed) -> None:
    draw = random.Random(0)  # 30 draws: 9 of them pass a checkpoint, the second is the first one that does
    points = [in_stage("download"), *(trained_for(draw.randint(1, 13)) for _ in range(30 if SOAK else 10))]
    points += [in_stage("export"), in_stage("export", "exporting"), in_stage("publish")]
    start = watched(pod(TRAINING, lora=LORA, export={"gguf": ["f16"]}))
    logs = [killed(start, reached) for reached in points]
    last = start.start()
    assert last.code == 0, last.printed
    fresh, resumed = ({line["event"] for line in log} for log in (logs[1], logs[3]))
    assert "exporting" in fresh, "before it trains it proves that it can be exported"
    assert "exporting" not in resumed, "and only once"
    assert [line["step"] for line in logs[3] if line["event"] == "resumed"] == [SAVE_STEPS]
    assert last.events("training is done") != []
    assert_as_undisturbed(start, [*logs, last.log], undisturbed)
