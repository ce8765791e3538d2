"""The keys under `<root>`, and how a run id is made."""

import re
from dataclasses import dataclass
from datetime import datetime

from job.contract.model import sha256_hex

_HASH_DIGITS = 10
_MAX_RUN_ID = 63  # a label's value, and so a Job's name
_RUN_ID = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_INDEX = re.compile(r"models/([^/]+)/runs/(\d{8}T\d{6}Z)-([^/]+)")

_COMPLETE = re.compile(r"step-(\d{6,})/complete\.json")

RESULT = "result.json"


def run_id_of(name: str, spec_bytes: bytes) -> str:
    """The run id of a spec: the model line's name, a dash, and 10 hex digits of the spec's SHA-256."""
    slug = name[: _MAX_RUN_ID - _HASH_DIGITS - 1].rstrip("-")
    return f"{slug}-{sha256_hex(spec_bytes)[:_HASH_DIGITS]}"


def is_run_id(text: str) -> bool:
    """Whether ``text`` can be a run id: what Kubernetes takes as a Job's name and as a label."""
    return bool(_RUN_ID.fullmatch(text))


def config_key(config_bytes: bytes) -> str:
    """The content-addressed key of a config."""
    return f"configs/{sha256_hex(config_bytes)}.yaml"


def latest_key(name: str) -> str:
    """The pointer to a model line's newest run."""
    return f"models/{name}/latest.json"


def index_key(name: str, time: str, run_id: str) -> str:
    """The empty object that lists a run under its model line; ``time`` sorts."""
    return f"{index_prefix(name)}{time}-{run_id}"


def index_prefix(name: str | None) -> str:
    """The index of a model line lies under it; with None that of every line, beside other keys."""
    return f"models/{name}/runs/" if name else "models/"


def indexed(key: str) -> tuple[str, datetime, str] | None:
    """The name, time and run id that `index_key` made a key of; None for any other key."""
    found = _INDEX.fullmatch(key)
    try:
        return (found[1], datetime.fromisoformat(found[2]), found[3]) if found else None
    except ValueError:  # digits that are no time
        return None


@dataclass(frozen=True)
class RunKeys:
    """The keys of one run."""

    run_id: str

    @property
    def prefix(self) -> str:
        """Everything of the run lies under it."""
        return f"runs/{self.run_id}/"

    @property
    def config(self) -> str:
        """The first launch's config."""
        return f"{self.prefix}config.yaml"

    @property
    def spec(self) -> str:
        """The frozen spec."""
        return f"{self.prefix}spec.json"

    @property
    def lease(self) -> str:
        """The newest attempt's heartbeat."""
        return f"{self.prefix}lease.json"

    @property
    def result(self) -> str:
        """The commit mark."""
        return f"{self.prefix}{RESULT}"

    @property
    def cancelled(self) -> str:
        """Who cancelled it."""
        return f"{self.prefix}cancelled.json"

    @property
    def attempts(self) -> str:
        """All attempts lie under it."""
        return f"{self.prefix}attempts/"

    def canary(self, uuid: str) -> str:
        """A write probe."""
        return f"{self.prefix}canary/{uuid}"

    def attempt(self, number: int) -> "AttemptKeys":
        """The keys of one attempt."""
        return AttemptKeys(f"{self.attempts}{number}/")


@dataclass(frozen=True)
class AttemptKeys:
    """The keys of one attempt, all under its own prefix."""

    prefix: str

    @property
    def claim(self) -> str:
        """Who owns the attempt."""
        return f"{self.prefix}claim.json"

    @property
    def outcome(self) -> str:
        """How it ended."""
        return f"{self.prefix}outcome.json"

    @property
    def published(self) -> str:
        """The adapter's own commit mark."""
        return f"{self.prefix}lora/published.json"

    @property
    def checkpoints(self) -> str:
        """All checkpoints lie under it."""
        return f"{self.prefix}checkpoints/"

    def checkpoint(self, step: int) -> str:
        """The prefix of a checkpoint's files."""
        return f"{self.checkpoints}step-{step:06d}/"

    def complete(self, step: int) -> str:
        """A checkpoint's commit mark."""
        return f"{self.checkpoint(step)}complete.json"

    def completed(self, key: str) -> int | None:
        """The step that `complete` made a key of; None for any other key."""
        found = _COMPLETE.fullmatch(key.removeprefix(self.checkpoints))
        return int(found[1]) if found else None

    def log(self, chunk: int) -> str:
        """The n-th chunk of the log, from 1."""
        return f"{self.prefix}log/{chunk:06d}.jsonl.gz"

    def artifacts(self, kind: str) -> str:
        """The prefix of one kind of artifact: lora, gguf, merged or report."""
        return f"{self.prefix}{kind}/"
