"""Brings a base model into a store, so that runs need no hub.

Files go one by one, config.json last: until then the prefix is no base model, neither to a launch nor to the job. What has
arrived is noted beside the files, so that an addition that was cut goes on where it was. Needs neither cluster nor runs.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from job.base_model import CONFIG, check_before_weights
from job.contract.documents import FrozenModel, FrozenObject
from job.contract.errors import DataError, TakenError
from job.contract.model import Document, canonical_bytes, read_document
from job.inputs import fetch_model_files, file_name, frozen_model, is_of_model, is_weights
from job.storage import Progress, Storage, no_progress

RECORD = "_added.json"  # begins so that it is no file of the model: job.inputs.is_visible

_SHA256_DIGITS = 64


class AddedFile(Document):
    """A file that has arrived."""

    size: int
    tag: str
    """The source's, as `FrozenObject.etag`."""
    etag: str
    """The store's."""
    sha256: str
    """Of the bytes that were sent."""


class Record(Document):
    """What is noted beside a model's files."""

    schema_version: Literal[1] = 1
    source: str
    commit: str | None = None
    files: dict[str, AddedFile] = {}


@dataclass(frozen=True)
class Added:
    """A base model in the store."""

    uri: str
    """What a config's `base_model` says."""
    sent_bytes: int
    kept_bytes: int
    """There already, and right."""


def find(source: str) -> FrozenModel:
    """A base model as it is now: all is seen that can be seen without its weights.

    Args:
        source: `hf://organisation/name[@revision]`, a directory, or a prefix of a store.

    Raises:
        NoInputError: there is none, or a file is missing.
        DataError: it could not be trained on: pickled, with code of its own, there twice, an adapter, quantized.
        PermissionDenied, UnavailableError, ConfigError: as the hub says.
    """
    model = frozen_model(source)
    with tempfile.TemporaryDirectory(prefix="finetune-model-") as directory:
        there = fetch_model_files([file for file in model.files if not is_weights(file)], Path(directory))
        check_before_weights([file_name(file) for file in model.files], there[0].parent)
    return model


def add(
    model: FrozenModel,
    to: Storage,
    progress: Progress = no_progress,
    of_bytes: Progress = no_progress,
    on_file: Callable[[str, AddedFile, bool], object] = lambda *_: None,
) -> Added:
    """Puts a base model into a store, each file verified. A file is on the local disk as long as it is moved, one at a time.

    Args:
        model: as `find` found it.
        to: the prefix.
        progress: is told of the bytes that move, by one thread at a time; what comes over a network moves twice.
        of_bytes: is told once, before, of how many there are.
        on_file: is told of each file that is there, and whether it had to be sent.

    Raises:
        TakenError: another model is there, or another addition writes there.
        DataError: a file is not what was found.
    """
    record, etag = _record(model, to)
    wanted: list[FrozenObject] = []
    for file in sorted(model.files, key=lambda file: file_name(file) == CONFIG):
        name = file_name(file)
        if (known := _arrived(file, record, to)) is None:
            wanted.append(file)
        else:
            on_file(name, known, False)
    of_bytes(sum(file.size * (2 if "://" in file.uri else 1) for file in wanted))
    for file in wanted:
        sent = _send(file, to, progress)
        record = record.model_copy(update={"files": {**record.files, file_name(file): sent}})
        etag = _note(record, to, etag)
        on_file(file_name(file), sent, True)
    sent_bytes = sum(file.size for file in wanted)
    return Added(f"{to.uri}/", sent_bytes, sum(file.size for file in model.files) - sent_bytes)


def _record(model: FrozenModel, to: Storage) -> tuple[Record, str]:
    """The record of this addition and its tag, once it is seen that no other model is there."""
    found = to.get(RECORD)
    before = read_document(Record, found[0], f"{to.uri}/{RECORD}") if found else None
    _check_prefix(model, before, to)
    record = Record(source=model.uri, commit=model.commit, files=before.files if before else {})
    return record, _note(record, to, found[1].etag if found else None)


def _check_prefix(model: FrozenModel, before: Record | None, to: Storage) -> None:
    """Nothing but this model may be there: runs that pinned another one need it as it is."""
    tags = {file_name(file): file.etag for file in model.files}
    there = {stat.key for stat in to.list("")}
    others = sorted(name for name in there - tags.keys() if is_of_model(name))
    noted = before.files if before else {}
    differ = sorted(name for name, file in noted.items() if file.tag != tags.get(name))
    if CONFIG in there and (before is None or differ):
        what = f"{before.source} at commit {before.commit}" if before else "one that was not added by this command"
        reason = f"another model: {what}"
    elif others:
        reason = f"{', '.join(others[:3])}, which {model.uri} has not"
    else:
        return
    raise TakenError(f"{to.uri} holds {reason}", "Add this one to a prefix of its own, such as …/name/commit/.")


def _arrived(file: FrozenObject, record: Record, to: Storage) -> AddedFile | None:
    """What is noted of a file, when the store still has that."""
    known = record.files.get(file_name(file))
    if known is None or known.tag != file.etag:
        return None
    stat = to.head(file_name(file))
    return known if stat and (stat.size, stat.etag) == (known.size, known.etag) else None


def _send(file: FrozenObject, to: Storage, progress: Progress) -> AddedFile:
    name = file_name(file)
    with tempfile.TemporaryDirectory(prefix="finetune-model-") as directory:
        [path] = fetch_model_files([file], Path(directory), progress)
        uploaded = to.upload(path, name, progress)
    if file.uri.startswith("hf://") and len(file.etag) == _SHA256_DIGITS and uploaded.sha256 != file.etag:
        raise DataError(f"{to.uri}/{name} is not {file.uri}: its SHA-256 differs", "Check the disk, and add it again.")
    return AddedFile(size=uploaded.stat.size, tag=file.etag, etag=uploaded.stat.etag, sha256=uploaded.sha256)


def _note(record: Record, to: Storage, etag: str | None) -> str:
    """Writes the record; its new tag."""
    body = canonical_bytes(record)
    stat = to.put_if_absent(RECORD, body) if etag is None else to.put_if_match(RECORD, body, etag)
    if stat is None:
        raise TakenError(f"another addition writes to {to.uri}", "Wait for its end, then run this one again.")
    return stat.etag
