"""Every exit code of the table, by a real cause."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from examples.demo.server import free_ports
from job.contract.documents import Outcome, Published, Result
from job.storage.opening import open_storage
from tests.job.conftest import Ended, Pod, wait_for_child, wait_for_training
from tests.tiny import make_tiny_model, sums

Make = Callable[..., Pod]


def nothing_published(pod: Pod) -> bool:
    keys = [stat.key for stat in open_storage(pod.root).list("")]
    return not any(key.endswith(("result.json", "latest.json")) for key in keys)


def test_64_bad_flags(pod: Make) -> None:
    assert pod().start("--run-id", "Not An Id").code == 64


def test_64_an_unknown_flag(pod: Make) -> None:
    ended = pod().start("--learning-rate", "1")
    assert ended.code == 64
    assert "Traceback" not in ended.printed


def test_65_bad_rows_are_told_with_their_place(pod: Make) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in sums(40)) + '{"messages": "none"}\n'
    start = pod(rows=rows.encode())
    ended = start.start()
    assert (ended.code, ended.outcome.stage) == (65, "download")
    assert "train.jsonl" in ended.outcome.message
    assert "41" in ended.outcome.message
    assert "Traceback" not in ended.printed
    assert nothing_published(start)


def test_66_an_input_that_is_not_there(pod: Make, bucket: str) -> None:
    ended = pod(dataset={"train": f"{bucket}/data/nowhere.jsonl"}).start()
    assert ended.code == 66
    assert "nowhere.jsonl" in ended.outcome.message


def test_66_a_config_that_is_not_there(pod: Make) -> None:
    start = pod()
    start.config += ".gone"
    assert start.start().code == 66


def test_69_a_store_that_does_not_answer(pod: Make) -> None:
    [port] = free_ports(1)
    ended = pod().start(
        AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{port}", FINETUNE_S3_BUDGET_SECONDS="2", AWS_MAX_ATTEMPTS="1"
    )
    assert ended.code == 69
    assert "Traceback" not in ended.printed


def test_70_a_loss_that_is_not_a_number(pod: Make, tmp_path: Path) -> None:
    base = make_tiny_model(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][0] = np.inf
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    start = pod(base=base)
    ended = start.start()
    assert (ended.code, ended.outcome.name, ended.outcome.stage) == (70, "BUG", "train")
    assert nothing_published(start)


def test_71_a_gpu_run_without_a_gpu_ends_before_any_download(pod: Make) -> None:
    start = pod(compute={"gpus": 1})
    ended = start.start()
    assert ended.code == 71
    assert not list(start.scratch.rglob("*.safetensors"))


def test_73_a_run_id_that_belongs_to_another_config(pod: Make) -> None:
    first = pod({"max_steps": 1})
    assert first.start("--run-id", "tiny-night-1", "--check").code == 0
    assert first.start("--run-id", "tiny-night-1").code == 0
    ended = pod({"max_steps": 2}).start("--run-id", "tiny-night-1")
    assert ended.code == 73
    assert "training.max_steps was 1 and is 2" in ended.outcome.message


def test_74_scratch_that_is_too_small_is_told_with_numbers_before_any_download(pod: Make) -> None:
    start = pod()
    start.scratch.mkdir()
    mount = f'mount -t tmpfs -o size=1m tmpfs {start.scratch} && exec "$@"'
    ended = start.start(prefix=("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"))
    assert ended.code == 74
    assert "GiB" in ended.outcome.message


def test_77_a_store_that_refuses_us(pod: Make) -> None:
    start = pod()
    ended = start.start(AWS_ACCESS_KEY_ID="someone-else", AWS_SECRET_ACCESS_KEY="not-the-secret")
    assert ended.code == 77
    assert "not-the-secret" not in ended.printed


def test_78_a_config_with_all_its_mistakes_at_once(pod: Make, bucket: str) -> None:
    start = pod()
    open_storage(bucket).put("configs/tiny.yaml", b"name: Bad Name\nlearning_rat: 1\n")
    ended = start.start()
    assert ended.code == 78
    assert "line 1: name" in ended.outcome.message
    assert "line 2: learning_rat" in ended.outcome.message


def test_78_a_tracker_without_its_secret(pod: Make) -> None:
    ended = pod({"report_to": ["wandb"]}).start()
    assert ended.code == 78
    assert "wandb" in ended.outcome.message


def ended_by(start: Pod, signal_number: int, *, of_child: bool) -> tuple[Ended, int]:
    process = start.process()
    child = wait_for_child(process)
    time.sleep(2)
    os.kill(child if of_child else process.pid, signal_number)
    return start.end(process), child


def test_137_a_child_that_is_killed(pod: Make) -> None:
    start = pod()
    ended, _ = ended_by(start, signal.SIGKILL, of_child=True)
    assert (ended.code, ended.outcome.name) == (137, "KILLED")
    assert "SIGKILL" in ended.outcome.message
    assert nothing_published(start)


def test_76_a_newer_attempt_has_taken_over(pod: Make) -> None:
    start = pod()
    process = start.process()
    wait_for_child(process)
    runs = open_storage(start.root)
    [claim] = [stat.key for stat in runs.list("runs/") if stat.key.endswith("/attempts/1/claim.json")]
    runs.put(claim.replace("/attempts/1/", "/attempts/2/"), b"another's")
    ended = start.end(process)
    assert (ended.code, ended.outcome.stage) == (76, "train")
    assert nothing_published(start)


def test_a_failed_export_leaves_a_usable_adapter(pod: Make) -> None:
    start = pod({"max_steps": 3}, export={"gguf": ["f16"]})
    process = start.process()
    wait_for_child(process)
    runs = open_storage(start.root)
    export = wait_for_child(process, "job.export [^-]")
    os.kill(export, signal.SIGKILL)
    ended = start.end(process)
    assert (ended.code, ended.outcome.stage) == (137, "export")
    assert nothing_published(start)
    [key] = [stat.key for stat in runs.list("runs/") if stat.key.endswith("/lora/published.json")]
    found = runs.get(key)
    assert found
    published = Published.model_validate_json(found[0])
    assert any(file.key.endswith("adapter_model.safetensors") for file in published.files)
    assert all((stat := runs.head(file.key)) and stat.size == file.size for file in published.files)

    # The next attempt does the export alone.
    again = start.start()
    assert again.code == 0, again.printed
    assert [line["stage"] for line in again.events("stage")] == ["download", "export", "publish"]
    [key] = [stat.key for stat in runs.list("runs/") if stat.key.endswith("/result.json")]
    found = runs.get(key)
    assert found
    result = Result.model_validate_json(found[0])
    assert (result.attempt, result.artifacts.lora, result.train) == (2, published.files, published.train)
    assert any("/attempts/2/gguf/" in file.key and file.key.endswith(".gguf") for file in result.artifacts.gguf)
    assert result.versions == published.versions


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_75_sigterm_with_nothing_to_save_ends_the_supervisor_and_its_child(pod: Make) -> None:
    start = pod()
    ended, child = ended_by(start, signal.SIGTERM, of_child=False)
    assert (ended.code, ended.outcome.name, ended.outcome.stage) == (75, "INTERRUPTED", "train")
    assert gone(child)
    assert nothing_published(start)
    [key] = [stat.key for stat in open_storage(start.root).list("runs/") if stat.key.endswith("/outcome.json")]
    found = open_storage(start.root).get(key)
    assert found
    assert Outcome.model_validate_json(found[0]) == ended.outcome


def test_143_a_second_sigterm_gives_up_training_that_hangs(pod: Make) -> None:
    start = pod({"max_steps": 500})
    process = start.process()
    child = wait_for_child(process)
    wait_for_training(start, 1)
    os.kill(child, signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert not gone(child)
    process.send_signal(signal.SIGTERM)
    ended = start.end(process)
    assert (ended.code, ended.outcome.name) == (143, "KILLED")
    assert "second SIGTERM" in ended.outcome.message
    assert gone(child)
    assert nothing_published(start)
    assert not [stat.key for stat in open_storage(start.root).list("runs/") if "/checkpoints/" in stat.key]
