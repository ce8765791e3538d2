"""Fetches what a run made. Needs the store alone, and reads result.json: a prefix is never listed."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock

from job.contract.documents import Artifact, Latest, Result
from job.contract.errors import DataError, NoInputError, UsageError
from job.contract.keys import RunKeys, latest_key
from job.contract.model import read_document
from job.storage import Progress, Storage, no_progress
from job.storage.local_files import is_unfinished, local_errors

KINDS = ("lora", "gguf", "merged", "report")
_LATEST = "@latest"
_AT_A_TIME = 8
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Pulled:
    """What is on the disk now."""

    run_id: str
    files: tuple[Path, ...]
    moved_bytes: int
    """Fetched by this pull."""
    kept_bytes: int
    """There already, and right."""


def pull(storage: Storage, what: str, to: Path, only: str | None = None, progress: Progress = no_progress) -> Pulled:
    """The artifacts of a run, each under `to/<kind>/` and with its name once its SHA-256 is the result's.

    What an earlier pull left there whole is not fetched again.

    Args:
        storage: the root of runs.
        what: a run id, or `NAME@latest`.
        to: a directory.
        only: a kind, or a quantization of the GGUF files such as `q4_k_m`.
        progress: is told of bytes.

    Raises:
        NoInputError: no such run, it has no result yet, or an artifact has gone.
        UsageError: `only` names nothing that the run made.
        DataError: an artifact is not what the result says.
    """
    run_id = run_of(storage, what)
    result = read_result(storage, run_id)
    wanted = {to / path: artifact for path, artifact in chosen(result, only)}
    _clear(wanted)
    told = Lock()

    def advance(size: int) -> None:
        with told:
            progress(size)

    with ThreadPoolExecutor(_AT_A_TIME, "pull") as workers:
        try:
            moved = list(workers.map(lambda item: _fetch(storage, item[1], item[0], advance), wanted.items()))
        finally:
            workers.shutdown(cancel_futures=True)
    whole = sum(artifact.size for artifact in wanted.values())
    return Pulled(run_id, tuple(wanted), sum(moved), whole - sum(moved))


def run_of(storage: Storage, what: str) -> str:
    """The run that `NAME@latest` means; any other word is a run id.

    Raises:
        NoInputError: no run of that name has succeeded.
    """
    if not what.endswith(_LATEST):
        return what
    key = latest_key(what.removesuffix(_LATEST))
    if found := storage.get(key):
        return read_document(Latest, found[0], f"{storage.uri}/{key}").run_id
    raise NoInputError(
        f"there is no {storage.uri}/{key}: no run of that name has succeeded", "`finetune list` names runs."
    )


def read_result(storage: Storage, run_id: str) -> Result:
    """A run's result.

    Raises:
        NoInputError: there is none; says whether there is such a run.
    """
    keys = RunKeys(run_id)
    if found := storage.get(keys.result):
        return read_document(Result, found[0], f"{storage.uri}/{keys.result}")
    if storage.head(keys.spec):
        raise NoInputError(f"{run_id} has no result yet", f"`finetune status {run_id}` tells how far it is.")
    raise NoInputError(f"there is no run {run_id} under {storage.uri}", "`finetune list` names the runs.")


def chosen(result: Result, only: str | None) -> list[tuple[PurePosixPath, Artifact]]:
    """The artifacts that `only` means, each with its path under the target.

    Raises:
        UsageError: it means none.
        DataError: a key that would leave the target.
    """
    found = [
        (path_of(artifact, kind), artifact)
        for kind in KINDS
        for artifact in getattr(result.artifacts, kind)
        if only in (None, kind) or (kind == "gguf" and artifact.key.endswith(f".{str(only).upper()}.gguf"))
    ]
    if not found:
        made = [kind for kind in KINDS if getattr(result.artifacts, kind)]
        files = [PurePosixPath(artifact.key).name for artifact in result.artifacts.gguf]
        raise UsageError(
            f"{result.run_id} made nothing that --only {only} names",
            f"It made {', '.join(made)}; of gguf {', '.join(files) or 'nothing'}.",
        )
    return found


def path_of(artifact: Artifact, kind: str) -> PurePosixPath:
    """`<kind>/<path>` of `runs/<run>/attempts/<n>/<kind>/<path>`.

    Raises:
        DataError: the key is not of that form, or names a place outside.
    """
    parts = artifact.key.split("/")
    if len(parts) < 6 or parts[4] != kind or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise DataError(f"the result names {artifact.key!r} among its {kind} files", "It was written by hand.")
    return PurePosixPath(*parts[4:])


def _clear(paths: Iterable[Path]) -> None:
    """Removes what pulls that were cut left beside these files."""
    for directory in {path.parent for path in paths}:
        with local_errors(directory):
            for left in directory.glob(".*") if directory.is_dir() else ():
                if is_unfinished(left.name):
                    left.unlink()


def _fetch(storage: Storage, artifact: Artifact, path: Path, progress: Progress) -> int:
    """Bytes that had to be moved so that the file is there."""
    with local_errors(path):
        if path.is_file() and path.stat().st_size == artifact.size and sha256_of(path) == artifact.sha256:
            return 0
    stat = storage.head(artifact.key)
    if stat is None:
        raise NoInputError(f"{storage.uri}/{artifact.key} has gone", "Train the run anew with --again.")
    unchecked = path.with_name(f".{path.name}.pulled")  # one name, so that cuts leave one file behind, and it is reused
    storage.download(stat, unchecked, progress)
    with local_errors(path):
        if sha256_of(unchecked) != artifact.sha256:
            unchecked.unlink()
            raise DataError(
                f"{storage.uri}/{artifact.key} is not what the result says: its SHA-256 differs",
                "It was replaced since. Train the run anew with --again.",
            )
        unchecked.replace(path)
    return artifact.size


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
