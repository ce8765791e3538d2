"""`make demo` and `make run`: the job on this machine, with an S3 server of its own where the config names one."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from examples.demo.answers import answers
from examples.demo.base_model import GGUF, base_model
from examples.demo.data import HELD_OUT, jsonl
from examples.demo.pod import closed_environment, start_job
from examples.demo.score import is_in_format
from examples.demo.server import s3_server
from job.contract.documents import Latest, Result
from job.contract.keys import RunKeys, config_key, latest_key
from job.storage import Storage
from job.storage.opening import open_storage
from job.storage.transfer import download_all, upload_directory

ROOT = "s3://demo"
CONFIG = Path(__file__).parents[1] / "demo.yaml"
console = Console(highlight=False, soft_wrap=True)


def main(argv: Sequence[str]) -> int:
    """Runs a config; the exit code is the job's."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--directory", type=Path, default=Path("build/demo"), help="all that is kept [build/demo]")
    parser.add_argument("--again", action="store_true", help="train anew though there is a result")
    flags = parser.parse_args(argv)
    again = ("--again",) if flags.again else ()
    directory: Path = flags.directory.absolute()

    if not flags.config.is_file():
        parser.error(f"{flags.config}: there is no such file")
    if f"{ROOT}/" not in flags.config.read_text("utf-8"):
        runs = os.environ.get("FINETUNE_RUNS") or str(directory / "runs")
        return start_job(str(flags.config), runs, directory, os.environ, *again)

    with s3_server(directory / "s3", bucket="demo") as server:
        os.environ.update(server.environment)
        storage = open_storage(ROOT)
        config = put_inputs(storage, flags.config.read_bytes())
        # The server ends with us: nobody then waits half an hour for it.
        variables = closed_environment() | server.environment | {"FINETUNE_S3_BUDGET_SECONDS": "20"}
        code = start_job(config, ROOT, directory, variables, *again)
        if code == 0 and flags.config.samefile(CONFIG):
            show(fetch(storage, "demo", directory / "artifacts"))
        return code


def put_inputs(storage: Storage, config: bytes) -> str:
    """Puts the base model, the rows and the config where they are missing; the config's URI."""
    for key, body in (("data/train.jsonl", jsonl().encode()), (config_key(config), config)):
        storage.put_if_absent(key, body)
    base = base_model()
    prefix = f"models/{base.name}/"
    if {stat.key for stat in storage.list(prefix)} != {f"{prefix}{path.name}" for path in base.iterdir()}:
        upload_directory(base, storage, prefix)
    return f"{storage.uri}/{config_key(config)}"


def fetch(storage: Storage, name: str, directory: Path) -> Path:
    """Downloads the artifacts of a model line's newest run, as whoever pulls them does; their directory."""
    latest = Latest.model_validate_json(read(storage, latest_key(name)))
    keys = RunKeys(latest.run_id)
    result = Result.model_validate_json(read(storage, keys.result))
    target = directory / latest.run_id
    prefix = keys.attempt(result.attempt).prefix
    wanted = []
    for artifact in result.artifacts.all():
        stat = storage.head(artifact.key)
        path = target / artifact.key.removeprefix(prefix)
        if stat is not None and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            wanted.append((storage, stat, path))
    download_all(wanted)
    return target


def read(storage: Storage, key: str) -> bytes:
    """A small document that must be there."""
    found = storage.get(key)
    assert found is not None, f"{storage.uri}/{key} is gone"
    return found[0]


def show(artifacts: Path) -> None:
    """Says where the artifacts are, and lets the model answer prompts that it has never seen, before and after."""
    console.print(f"\nThe artifacts, pulled from S3 to [bold]{artifacts}[/]:")
    for path in sorted(artifacts.rglob("*")):
        if path.is_file():
            console.print(f"  {path.stat().st_size:>12,}  {path.relative_to(artifacts)}")
    tuned = artifacts / "gguf" / "demo.F16.gguf"
    table = Table("prompt, never trained on", "before", "after", title=f"\nlibllama answers from {tuned.name}")
    score = [0, 0]
    for prompt, *pair in zip(HELD_OUT, answers(GGUF, HELD_OUT), answers(tuned, HELD_OUT), strict=True):
        table.add_row(prompt, *(answer.replace("\n", " ")[:80] for answer in pair))
        score = [count + is_in_format(answer) for count, answer in zip(score, pair, strict=True)]
    console.print(table)
    before, after = score
    console.print(
        f"In the format that was taught: {before} of {len(HELD_OUT)} before, {after} of {len(HELD_OUT)} after."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
