"""The whole job against the reference run as one plain script: same model, rows, seed, dtype, threads and steps."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.ipc

from bench import Figure, at_most
from examples.demo.base_model import base_model
from examples.demo.data import jsonl
from job.contract.config import Recipe
from job.contract.documents import Result
from job.contract.model import sha256_hex
from job.dataset.prepared import TRAIN_ROWS
from job.dataset.preparing import prepare
from job.dataset.tokenizer import load_tokenizer
from job.environment import environment
from job.machine import read_machine
from job.storage.opening import open_storage

_STEPS = int(os.environ.get("BENCH_STEPS", "60"))
_REPOSITORY = Path(__file__).parents[1]


def figures() -> list[Figure]:
    """The training loop and the whole job against the script, and what isolation and verification cost, by stage."""
    llama_cpp = Path(os.environ["FINETUNE_LLAMA_CPP"])
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        data = root / "rows.jsonl"
        data.write_text(jsonl())
        script, script_seconds = _script(root, data, llama_cpp)
        result, losses, job_seconds = _job(root, data, llama_cpp)
        if _rows_sha256(root, data) != script["rows_sha256"]:
            raise AssertionError("the script was not trained on the job's ids and labels")
        apart_from = _isolation_and_verification(root / "log.jsonl", script["seconds"])
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds_by_stage.items())
    parts = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in script["seconds"].items())
    beyond = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in apart_from.items())
    apart = max(abs(ours - theirs) for ours, theirs in zip(losses, script["losses"], strict=True))
    return [
        at_most(f"training loop of {_STEPS} steps", result.train.seconds, script["seconds"]["train"], 1.02),
        at_most(
            f"whole job ({stages}) without {beyond}, beside the script ({parts})",
            job_seconds - sum(apart_from.values()),
            script_seconds,
            1.10,
        ),
        at_most("losses apart at most, beside 1e-5", apart, 1e-5, 1, "loss"),
    ]


def _isolation_and_verification(log: Path, script: Mapping[str, float]) -> dict[str, float]:
    """What the job does in more processes than the script, or beyond it, in seconds, from the times of its log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]

    def at(event: str, **fields: str) -> float:
        found = next(
            line for line in lines if line["event"] == event and all(line.get(key) == fields[key] for key in fields)
        )
        return datetime.fromisoformat(found["at"]).timestamp()

    return {
        "the proof that it can be exported": at("versions") - at("stage", stage="train") - script["import"],
        "the export's own import": at("exporting", what="merged model") - at("stage", stage="export"),
        "checks of the GGUF": at("exported") - at("exporting", what="GGUF f16") - script["convert"],
    }


def _rows_sha256(root: Path, data: Path) -> str:
    """The hash that the script takes of its rows, of what the job makes of the same file."""
    recipe = Recipe.model_validate({key: value for key, value in _config(data).items() if key != "compute"})
    tokenizer = load_tokenizer(base_model(), None, recipe.chat_template_date)
    (root / "rows").mkdir()
    prepare([data], None, recipe, tokenizer, root / "rows", gpus=0)
    with pyarrow.memory_map(str(root / "rows" / TRAIN_ROWS)) as file:
        rows = pyarrow.ipc.open_stream(file).read_all().to_pylist()
    return sha256_hex(json.dumps([(row["input_ids"], row["labels"]) for row in rows]).encode())


def _script(root: Path, data: Path, llama_cpp: Path) -> tuple[Mapping[str, Any], float]:
    out = root / "script"
    (out / "home" / "tmp").mkdir(parents=True)
    variables = environment(out / "home", out, llama_cpp, 0, read_machine().usable_cpus, (), os.environ)
    command = [sys.executable, str(Path(__file__).with_name("reference_script.py"))]
    arguments = [str(base_model()), str(data), str(out), str(llama_cpp), str(_STEPS)]
    began = time.monotonic()
    subprocess.run([*command, *arguments], env=variables, cwd=out, check=True, stdout=subprocess.DEVNULL)
    return json.loads((out / "record.json").read_bytes()), time.monotonic() - began


def _config(data: Path) -> dict[str, Any]:
    return {
        "name": "reference",
        "base_model": str(base_model()),
        "max_seq_length": 256,
        "dtype": "float32",
        "load_in_4bit": False,
        "dataset": {"train": str(data)},
        "training": {"max_steps": _STEPS, "optim": "adamw_torch_fused"},
        "samples": {"prompts": ["Continue the fibonnaci sequence: 1, 1, 2, 3, 5, 8,"]},
        "compute": {"gpus": 0},
    }


def _job(root: Path, data: Path, llama_cpp: Path) -> tuple[Result, list[float], float]:
    (root / "config.yaml").write_text(json.dumps(_config(data)))
    places = ["--config", str(root / "config.yaml"), "--runs", str(root / "runs"), "--scratch", str(root / "scratch")]
    rest = ["--termination-log", str(root / "termination"), "--llama-cpp", str(llama_cpp)]
    began = time.monotonic()
    with (root / "log.jsonl").open("wb") as log:
        subprocess.run([sys.executable, "-m", "job", *places, *rest], cwd=_REPOSITORY, check=True, stdout=log)
    seconds = time.monotonic() - began
    runs = open_storage(str(root / "runs"))
    [key] = [stat.key for stat in runs.list("runs/") if stat.key.endswith("/result.json")]
    found = runs.get(key)
    assert found
    result = Result.model_validate_json(found[0])
    [metrics] = [file.key for file in result.artifacts.report if file.key.endswith("metrics.jsonl")]
    lines = runs.get(metrics)
    assert lines
    events = [json.loads(line) for line in lines[0].splitlines()]
    return result, [event["loss"] for event in events if event["event"] == "step"], seconds
