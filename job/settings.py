"""What the surroundings tell the job: flags first, then the environment."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from job.contract.documents import STALE_SECONDS
from job.contract.errors import UsageError
from job.contract.keys import is_run_id

_GRACE_SECONDS = 100  # of the 120 in k8s/job.yaml
CHILD_GRACE_SECONDS = 35  # torchrun gives its own workers 30
ENDING_SECONDS = 10


@dataclass(frozen=True)
class Site:
    """Who runs the job where, as the Job's template says; all None outside a cluster."""

    site: str | None
    namespace: str | None
    job_uid: str | None
    pod: str | None
    node: str | None


@dataclass(frozen=True)
class Settings:
    """One start of `python -m job`."""

    config: str
    """The config's URI or path."""
    runs: str
    """The root that runs are kept under: `s3://bucket[/prefix]` or a directory."""
    run_id: str | None
    """Given in a pod by the Job's name; None: made from the frozen spec."""
    scratch: Path
    termination_log: Path
    llama_cpp: Path
    check: bool
    again: bool
    ordinal: int
    """Of a fresh run whose spec the pod freezes; 0 of the first."""
    site: Site
    image: str | None
    code_revision: str | None
    heartbeat_seconds: float
    stale_seconds: float
    """An attempt whose heartbeat is older than this has died."""
    grace_seconds: float
    """From SIGTERM to the end at the latest; less than what Kubernetes gives, so that the ending is still told."""
    child_grace_seconds: float
    """From SIGTERM to SIGKILL of a child, when a run ends without saving."""
    ending_seconds: float
    """How long each of an attempt's last waits may take: for its heartbeat, for the store to take log and outcome."""
    watchdog_seconds: float
    """A child that gives no sign of life for so long hangs; steps that take long get more."""
    max_attempts: int
    """Of one Job, evictions included."""
    max_idle_attempts: int
    """Of one Job that end by themselves, one after the other, without progress."""

    def hurried(self, seconds: float) -> float:
        """For how long a thing may be waited for when the grace period is over: so long, or less if that was short.

        The pod is killed a fifth of `grace_seconds` later (launcher/manifest.py). Three things are waited for until
        then: children that are asked to end, the same being killed, and a store that is told.
        """
        return min(seconds, self.grace_seconds / 20)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "python -m job --help lists the flags.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m job",
        description="Finetune a model as a config says: inputs from S3, adapter and GGUF to S3.",
        epilog="Each flag has an environment variable, in brackets; the flag wins. Exit codes: README.md.",
    )
    text = {
        "--config": "the config: s3://bucket/key or a file [FINETUNE_CONFIG]",
        "--runs": "where runs are kept: s3://bucket[/prefix] or a directory [FINETUNE_RUNS]",
        "--run-id": "the run's id; else it is made from the config and its frozen inputs [FINETUNE_RUN_ID]",
        "--scratch": "a directory for everything that is not kept [FINETUNE_SCRATCH, /scratch]",
        "--termination-log": "the file that is told how it ended [FINETUNE_TERMINATION_LOG, /dev/termination-log]",
        "--llama-cpp": "the pinned llama.cpp, as `make llama-cpp` prepares it [FINETUNE_LLAMA_CPP, /opt/llama.cpp]",
    }
    for flag, help_text in text.items():
        parser.add_argument(flag, help=help_text)
    parser.add_argument(
        "--check", action="store_true", help="do everything that comes before training, write only a probe"
    )
    parser.add_argument("--again", action="store_true", help="a fresh run of a spec that has run before")
    return parser


def read_settings(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this start.

    Raises:
        UsageError: for flags and variables that are missing, unknown or out of bounds.
    """
    flags = _parser().parse_args(argv)

    def value(name: str, default: str | None = None) -> str | None:
        return getattr(flags, name) or environment.get(f"FINETUNE_{name.upper()}") or default

    def required(name: str) -> str:
        if found := value(name):
            return found
        raise UsageError(f"no {name} given", f"Pass --{name} or set FINETUNE_{name.upper()}.")

    def seconds(name: str, default: float) -> float:
        try:
            number = float(environment.get(name, default))
        except ValueError:
            number = 0
        if not 0 < number < math.inf:
            raise UsageError(f"{name}={environment[name]} is not a number of seconds above 0")
        return number

    def count(name: str, default: int, least: int = 1) -> int:
        text = environment.get(name, str(default))
        if not text.isdecimal() or int(text) < least:
            raise UsageError(f"{name}={text} is not a whole number from {least} on")
        return int(text)

    run_id = value("run_id")
    if run_id and not is_run_id(run_id):
        raise UsageError(f"the run id {run_id!r} is not one", "Use lower case letters, digits and dashes, at most 63.")
    if run_id and flags.again:
        raise UsageError("--again makes a new run id, so --run-id cannot be given with it")
    return Settings(
        config=required("config"),
        runs=required("runs"),
        run_id=run_id,
        scratch=Path(value("scratch", "/scratch") or "").absolute(),
        termination_log=Path(value("termination_log", "/dev/termination-log") or ""),
        llama_cpp=Path(value("llama_cpp", "/opt/llama.cpp") or "").absolute(),
        check=flags.check,
        again=flags.again,
        ordinal=count("FINETUNE_AGAIN", 0, least=0),
        site=Site(
            site=environment.get("FINETUNE_SITE"),
            namespace=environment.get("FINETUNE_NAMESPACE"),
            job_uid=environment.get("FINETUNE_JOB_UID"),
            pod=environment.get("FINETUNE_POD"),
            node=environment.get("FINETUNE_NODE"),
        ),
        image=environment.get("FINETUNE_IMAGE"),
        code_revision=environment.get("FINETUNE_CODE_REVISION"),
        heartbeat_seconds=seconds("FINETUNE_HEARTBEAT_SECONDS", 30),
        stale_seconds=seconds("FINETUNE_STALE_SECONDS", STALE_SECONDS),
        grace_seconds=seconds("FINETUNE_GRACE_SECONDS", _GRACE_SECONDS),
        child_grace_seconds=seconds("FINETUNE_CHILD_GRACE_SECONDS", CHILD_GRACE_SECONDS),
        ending_seconds=seconds("FINETUNE_ENDING_SECONDS", ENDING_SECONDS),
        watchdog_seconds=seconds("FINETUNE_WATCHDOG_SECONDS", 600),
        max_attempts=count("FINETUNE_MAX_ATTEMPTS", 20),
        max_idle_attempts=count("FINETUNE_MAX_IDLE_ATTEMPTS", 3),
    )
