"""A run over several pods: killed, told to stop, and started again, it comes to what one that nobody disturbed does."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from job.contract.documents import Checkpoint, Result
from job.contract.model import sha256_hex
from job.storage import Storage
from job.storage.opening import open_storage
from tests.job.conftest import Pod, wait_for_child, wait_for_training

Make = Callable[..., Pod]


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


def test_a_run_that_is_killed_and_told_to_stop_comes_to_the_same_adapter(pod: Make, tmp_path: Path) -> None:
    start = pod({"max_steps": 120, "save_steps": 20}, lora={"r": 8, "lora_alpha": 16, "lora_dropout": 0.1})
    storage = open_storage(start.root)

    # Killed once a checkpoint is in the store.
    first = start.process()
    child = wait_for_child(first)
    wait_for_checkpoint(storage, first)
    first.kill()
    os.killpg(child, signal.SIGKILL)
    first.communicate()
    kept = max(checkpoint.step for _, checkpoint in complete(storage))
    assert kept < 120

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
    assert [line["step"] for line in third.events("step")] == list(range(last.step + 1, 121))

    undisturbed = replace(start, root=f"{start.root}-undisturbed")
    assert undisturbed.start().code == 0
    one, other = result_of(storage), result_of(open_storage(undisturbed.root))
    assert weights(one) == weights(other)
    assert (one.attempt, one.train.steps, one.train.train_loss) == (3, 120, other.train.train_loss)
    assert (one.train.tokens_seen, one.train.tokens_trained) == (other.train.tokens_seen, other.train.tokens_trained)
