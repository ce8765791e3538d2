"""What earlier attempts left: an adapter that one published, else the newest checkpoint that holds; and what to clear."""

import fnmatch
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import structlog

from job.attempt import Attempt
from job.contract.documents import Artifact, Checkpoint, Fingerprint, Published
from job.contract.errors import DataError, JobError, NoInputError
from job.contract.model import differences, read_document
from job.run import stands
from job.storage import Storage
from job.storage.transfer import download_all

log = structlog.get_logger()

_WHOLE = frozenset({"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "measured.json"})
# The trainer loads these by `weights_only`. What else could be unpickled, the trainer never writes.
_PICKLED = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_*.pth")
_PLAIN = ("*.json", "*.safetensors", "*.jinja", "*.md", "*.txt", "*.model")


def published_adapter(attempt: Attempt, into: Path) -> Published | None:
    """The newest adapter that an earlier attempt of this run published, fetched; None when none holds.

    Args:
        attempt: the one that looks.
        into: where its files are laid.
    """
    storage = attempt.run.storage
    for number in range(attempt.number - 1, 0, -1):
        keys = attempt.run.keys.attempt(number)
        if not (found := storage.get(keys.published)):
            continue
        try:
            published = read_document(Published, found[0], keys.published)
            if published.spec_sha256 != attempt.run.spec_sha256:
                raise DataError("it is of another spec")
            fetch(storage, published.files, keys.artifacts("lora"), into)
        except (DataError, NoInputError) as error:
            log.warning("an adapter is not kept", from_attempt=number, why=error.message)
            continue
        log.info("training is done", from_attempt=number, steps=published.train.steps)
        return published
    return None


def end_uploads(attempt: Attempt) -> None:
    """Ends the uploads that earlier attempts of this run were killed in. A store that refuses is no reason to stop."""
    ended = 0
    try:
        for number in range(1, attempt.number):
            ended += attempt.run.storage.end_uploads(attempt.run.keys.attempt(number).prefix)
    except JobError as error:
        log.warning("unfinished uploads of earlier attempts were not ended", why=error.message)
    if ended:
        log.info("unfinished uploads of earlier attempts were ended", count=ended)


def newest_checkpoint(attempt: Attempt, fingerprint: Fingerprint, into: Path) -> Path | None:
    """The checkpoint that training goes on from, fetched; None when it begins at step 0. Tells which, and why.

    Args:
        attempt: the one that looks among those before it.
        fingerprint: what training has now.
        into: where the checkpoint's directory is made.
    """
    refused = 0
    for step, number in sorted(_complete(attempt), reverse=True):
        try:
            _fetch_checkpoint(attempt, number, step, fingerprint, into)
        except (DataError, NoInputError) as error:
            log.warning("a checkpoint is not gone on from", step=step, from_attempt=number, why=error.message)
            refused += 1
            continue
        log.info("resumed", step=step, from_attempt=number)
        return into
    if attempt.number > 1:
        why = f"none of {refused} checkpoints can be gone on from" if refused else "there is no complete checkpoint"
        log.info("starts from step 0", why=why)
    return None


def _complete(attempt: Attempt) -> Iterator[tuple[int, int]]:
    """Step and attempt of every complete checkpoint of the attempts before this one."""
    for number in range(1, attempt.number):
        keys = attempt.run.keys.attempt(number)
        for stat in attempt.run.storage.list(keys.checkpoints):
            if (step := keys.completed(stat.key)) is not None:
                yield step, number


def _fetch_checkpoint(attempt: Attempt, number: int, step: int, fingerprint: Fingerprint, into: Path) -> None:
    """Raises DataError or NoInputError for one that is damaged, foreign or gone."""
    storage, keys = attempt.run.storage, attempt.run.keys.attempt(number)
    found = storage.get(keys.complete(step))
    if found is None:
        raise NoInputError("it was listed and is gone")
    checkpoint = read_document(Checkpoint, found[0], keys.complete(step))
    theirs, ours = checkpoint.fingerprint.model_dump(), fingerprint.model_dump()
    if changed := differences(theirs, ours):
        raise DataError(f"its fingerprint differs: {', '.join(changed)}")
    names = {file.key.removeprefix(keys.checkpoint(step)) for file in checkpoint.files}
    if missing := sorted((_WHOLE | _random_states(fingerprint.world_size)) - names):
        raise DataError(f"it lacks {', '.join(missing)}")
    if foreign := sorted(name for name in names if not any(fnmatch.fnmatch(name, kind) for kind in _PICKLED + _PLAIN)):
        raise DataError(f"it holds {foreign[0]}, which no checkpoint of ours does")
    fetch(storage, checkpoint.files, keys.checkpoint(step), into)


def _random_states(world_size: int) -> set[str]:
    """Their names, as the trainer gives them. It goes on without one that is missing, but draws other numbers."""
    if world_size == 1:
        return {"rng_state.pth"}
    return {f"rng_state_{rank}.pth" for rank in range(world_size)}


def fetch(storage: Storage, files: tuple[Artifact, ...], prefix: str, into: Path) -> None:
    """Files that a document names, into a directory that is made anew.

    Raises:
        DataError: one is missing, differs, or is not below the prefix.
    """
    shutil.rmtree(into, ignore_errors=True)
    wanted = [(file, storage.head(file.key), into / _name(file.key, prefix)) for file in files]
    for file, stat, _ in wanted:
        if not stands(stat, file):
            raise DataError(f"{storage.uri}/{file.key} is not what was put there")
    download_all((storage, stat, path) for _, stat, path in wanted if stat)
    for file, _, path in wanted:
        with path.open("rb") as body:
            if hashlib.file_digest(body, "sha256").hexdigest() != file.sha256:
                raise DataError(f"{storage.uri}/{file.key} is not what was put there: its SHA-256 differs")


def _name(key: str, prefix: str) -> str:
    """A key's path below a prefix."""
    name = PurePosixPath(key.removeprefix(prefix))
    if not key.startswith(prefix) or name.is_absolute() or ".." in name.parts:
        raise DataError(f"{key} is not below {prefix}")
    return str(name)
