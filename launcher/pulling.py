"""Fetches what a run made. Needs the store alone, and reads result.json: a prefix is never listed."""

import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from job.contract.documents import Artifact, Artifacts, Latest, Result, Spec
from job.contract.errors import DataError, NoInputError, TakenError, UsageError
from job.contract.keys import RunKeys, is_run_id, latest_key
from job.contract.model import read_document
from job.storage import Progress, Storage, no_progress
from job.storage.local_files import is_unfinished, local_errors
from job.storage.names import checked_key
from job.storage.transfer import each_file, one_at_a_time
from launcher.evidence import Evidence
from launcher.fetching import fetch, part_of
from launcher.runs import no_such_run, read_run

KINDS = tuple(Artifacts.model_fields)

_KEY = re.compile(r"runs/[^/]+/attempts/[0-9]+/([^/]+)/(.+)")  # as AttemptKeys.artifacts begins it
_LIST = "`finetune list` names the runs that have succeeded."


@dataclass(frozen=True)
class Pulled:
    """What is on the disk now."""

    run_id: str
    files: tuple[Path, ...]
    moved_bytes: int
    """Of these files, fetched by this pull."""
    kept_bytes: int
    """There already, and right."""


def pull(
    storage: Storage,
    what: str,
    to: Path,
    only: str | None = None,
    progress: Progress = no_progress,
    of_bytes: Progress = no_progress,
) -> Pulled:
    """The artifacts of a run, each under `to/<kind>/` and with its name once its SHA-256 is the result's.

    What an earlier pull left there, a file or its beginning, is not fetched again; what is there and differs is replaced.

    Args:
        storage: the root of runs.
        what: a run id, or `NAME@latest`.
        to: a directory; it is made.
        only: a kind, or a quantization of the GGUF files such as `q4_k_m`.
        progress: is told of the bytes that move, by one thread at a time.
        of_bytes: is told once, before, of how many there are.

    Raises:
        UsageError: `what` or `only` names nothing that can be.
        NoInputError: no such run, it has no result yet, or an artifact has gone.
        DataError: an artifact is not what the result says, or its key leads elsewhere.
        TakenError: another pull writes there.
    """
    run_id = run_of(storage, what)
    files = files_of(read_result(storage, run_id))
    wanted = files if only is None else chosen(files, only, run_id, _line(storage, run_id))
    whole = sum(artifact.size for artifact in wanted.values())
    of_bytes(whole)
    with _alone(to):
        _clear({part_of(to / path, artifact) for path, artifact in files.items()})
        told = one_at_a_time(progress)
        moved = sum(
            each_file(
                lambda file: fetch(storage, file[1], to / file[0], told), wanted.items(), lambda file: file[1].size
            )
        )
    return Pulled(run_id, tuple(to / path for path in wanted), moved, whole - moved)


def run_of(storage: Storage, what: str) -> str:
    """The run that a run id or `NAME@latest` means; whether there is such a run is not looked at.

    Raises:
        UsageError: it is neither.
        NoInputError: no run of that name has succeeded.
    """
    name, at, word = what.partition("@")
    if not is_run_id(name) or (at and word != "latest"):
        raise UsageError(f"{what!r} is neither a run id nor NAME@latest", _LIST)
    if not at:
        return name
    key = latest_key(name)
    if found := storage.get(key):
        return read_document(Latest, found[0], f"{storage.uri}/{key}").run_id
    raise NoInputError(f"there is no {storage.uri}/{key}: no run of that name has succeeded", _LIST)


def read_result(storage: Storage, run_id: str) -> Result:
    """A run's result.

    Raises:
        NoInputError: there is none; says whether there is such a run, and how far it came.
    """
    keys = RunKeys(run_id)
    if found := storage.get(keys.result):
        return read_document(Result, found[0], f"{storage.uri}/{keys.result}")
    documents = read_run(storage, run_id)
    if documents.result:  # put in this very moment
        return documents.result
    run = Evidence({}, None, documents)
    if not documents.exists:
        raise no_such_run(run_id, storage.uri)
    raise NoInputError(
        f"{run_id} has no result yet: {_how_far(run)}",
        run.advice
        if documents.outcome
        else f"`finetune status {run_id}` tells how it is, `finetune wait` waits for it.",
    )


def _how_far(run: Evidence) -> str:
    """How far a run without a result came, as the store alone knows it."""
    cancelled, lease = run.documents.cancelled, run.documents.lease
    told = [f"{cancelled.by} cancelled it"] if cancelled and run.cancelled else []
    if run.attempt is None:
        told.append("no attempt has begun")
    elif run.documents.outcome:
        told.append(f"{run.holder}: {run.ending}")
    else:
        began = lease if lease and lease.attempt == run.attempt else None  # else it is an older attempt's
        step = f", step {began.step} of {began.of}" if began and began.step is not None else ""
        stage = f"in the stage {began.stage}{step}" if began else "as it began"
        told.append(f"{run.holder} was last heard of {run.silence} ago, {stage}")
    return ", ".join(told)


def _line(storage: Storage, run_id: str) -> str:
    """The model line of a run, by which its GGUF files are named."""
    key = RunKeys(run_id).spec
    if found := storage.get(key):
        return read_document(Spec, found[0], f"{storage.uri}/{key}").recipe.name
    raise NoInputError(f"{storage.uri}/{key} has gone", "Pull without --only.")


def files_of(result: Result) -> dict[PurePosixPath, Artifact]:
    """What a run made, each by its path under the target.

    Raises:
        DataError: a key that would leave the target.
    """
    return {path_of(artifact.key, kind): artifact for kind in KINDS for artifact in getattr(result.artifacts, kind)}


def path_of(key: str, kind: str) -> PurePosixPath:
    """`<kind>/<path>` of `runs/<run>/attempts/<n>/<kind>/<path>`.

    Raises:
        DataError: the key is not of that form, or names a place outside.
    """
    found = _KEY.fullmatch(checked_key(key, "result.json"))
    if found is None or found[1] != kind:
        raise DataError(f"the result names {key!r} among its {kind} files", "It was written by hand.")
    return PurePosixPath(kind, found[2])


def chosen(files: Mapping[PurePosixPath, Artifact], only: str, run_id: str, line: str) -> dict[PurePosixPath, Artifact]:
    """The files that `only` means.

    Args:
        files: all that the run made.
        only: a kind or a quantization.
        run_id: the run's, to be told.
        line: its model line. `<line>-lora.F16.gguf` is the adapter, and no quantization of the model.

    Raises:
        UsageError: it means none; names what there is.
    """
    kinds = {kind: [path for path in files if path.parts[0] == kind] for kind in KINDS}
    made = {kind: paths for kind, paths in kinds.items() if paths}
    for path in kinds["gguf"]:
        if path.match(f"gguf/{line}.*.gguf"):
            made[path.name.removeprefix(f"{line}.").removesuffix(".gguf").lower()] = [path]
    if only.lower() not in made:
        raise UsageError(f"{run_id} made no {only!r}", f"It made: {', '.join(made) or 'nothing'}.")
    return {path: files[path] for path in made[only.lower()]}


@contextmanager
def _alone(to: Path) -> Iterator[None]:
    """Makes the directory, and keeps other pulls out: they would clear away what this one has not finished."""
    with local_errors(to):
        if not to.exists():
            to.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(to, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with local_errors(to):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # goes with this process, however it ends
            except BlockingIOError as error:
                raise TakenError(f"another pull writes to {to}", "Wait for its end, or pull elsewhere.") from error
        yield
    finally:
        os.close(descriptor)


def _clear(parts: Set[Path]) -> None:
    """Removes what was left unfinished beside these, which are gone on with."""
    for directory in {part.parent for part in parts}:
        with local_errors(directory):
            for left in directory.iterdir() if directory.is_dir() else ():
                if is_unfinished(left.name) and left not in parts:
                    left.unlink()
