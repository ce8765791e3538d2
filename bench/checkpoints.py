"""What checkpoints cost training, beside the interval between two: a real model, and a real S3 server on this machine.

The same run is started twice and told to stop each time, the second time as soon as it has gone on.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

from bench import Figure, at_most
from examples.demo.base_model import base_model
from examples.demo.data import jsonl
from examples.demo.server import s3_server
from job.contract.config import Training
from job.contract.exits import Exit

_INTERVAL_SECONDS: float = Training.model_fields["save_seconds"].default
_SECONDS_HERE = 5  # several checkpoints within a minute, each of them sent before the next one is due
_CHECKPOINTS = 4
_GOAL = 0.02
_REPOSITORY = Path(__file__).parents[1]

Log = list[dict[str, Any]]


def figures() -> list[Figure]:
    """The share of the default interval that a checkpoint takes, and how soon another pod goes on from it."""
    with tempfile.TemporaryDirectory() as place, s3_server(Path(place) / "s3", "bench") as server:
        root = Path(place)
        (root / "rows.jsonl").write_text(jsonl())
        (root / "config.yaml").write_text(json.dumps(_config(root / "rows.jsonl")))
        environment = os.environ | server.environment
        first, first_seconds = _start(root, "first", environment, "checkpoint kept", _CHECKPOINTS)
        second, second_seconds = _start(root, "second", environment, "training", 1)
    if not any(line["event"] == "resumed" for line in second):
        raise AssertionError("the second start began anew")
    kept = [line for line in first if line["event"] == "checkpoint kept"]
    stall, upload = mean(_stalls(first)), mean(line["seconds"] for line in kept)
    size = f"a checkpoint of {kept[0]['bytes'] / 1e6:.0f} MB"
    return [
        at_most(f"training stands still for {size}, beside save_seconds", stall, _INTERVAL_SECONDS, _GOAL),
        at_most("the same, if it stood still while that is sent, too", stall + upload, _INTERVAL_SECONDS, _GOAL),
        at_most("start to training, from a checkpoint beside from nothing", second_seconds, first_seconds, math.inf),
    ]


def _config(data: Path) -> dict[str, Any]:
    return {
        "name": "checkpoints",
        "base_model": str(base_model()),
        "max_seq_length": 256,
        "dtype": "float32",
        "load_in_4bit": False,
        "dataset": {"train": str(data)},
        "training": {
            "max_steps": 10_000,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "save_seconds": _SECONDS_HERE,
        },
        "export": {"gguf": []},
        "compute": {"gpus": 0},
    }


def _start(root: Path, pod: str, environment: Mapping[str, str], event: str, times: int) -> tuple[Log, float]:
    """Starts the job on a scratch of its own, and tells it to stop when an event has come so often.

    Returns:
        Its whole log, and the seconds from its start until it trained.
    """
    places = ["--config", str(root / "config.yaml"), "--runs", "s3://bench/runs", "--scratch", str(root / pod)]
    command = [sys.executable, "-m", "job", *places, "--termination-log", str(root / f"{pod}.ended")]
    began = datetime.now(UTC)
    with subprocess.Popen(command, env=environment, cwd=_REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        log: Log = []
        for line in process.stdout:
            log.append(json.loads(line))
            if log[-1]["event"] == event:
                times -= 1
                if times == 0:
                    process.send_signal(signal.SIGTERM)
    if process.returncode != Exit.INTERRUPTED:
        raise AssertionError(f"the job ended with {process.returncode}: {log[-3:]}")
    [training] = [line for line in log if line["event"] == "training"]
    return log, (_at(training) - began).total_seconds()


def _stalls(log: Log) -> list[float]:
    """Seconds between a step's end and its checkpoint's, for each checkpoint."""
    ended = {line["step"]: _at(line) for line in log if line["event"] == "step"}
    return [(_at(line) - ended[line["step"]]).total_seconds() for line in log if line["event"] == "checkpoint"]


def _at(line: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(line["at"])
