"""Every moving input of a run pinned, and later fetched as it was pinned."""

import glob
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar

from job.contract.config import Recipe, RunConfig, Uris
from job.contract.documents import FrozenDataset, FrozenModel, FrozenObject, Spec
from job.contract.errors import ConfigError, DataError, JobError, NoInputError, PermissionDenied, together
from job.contract.keys import RunKeys, run_id_of
from job.contract.model import canonical_bytes
from job.storage import Progress, Stat, Storage, no_progress
from job.storage.opening import locate
from job.storage.transfer import download_all

if TYPE_CHECKING:
    from job import hub

T = TypeVar("T")

_WILDCARD = re.compile(r"[*?[]")
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tbz2?|txz|7z|rar|tar\.(gz|bz2|xz|zst))$", re.IGNORECASE)
_COMPRESSED = (".gz", ".zst")
_ROWS = re.compile(r"\.(jsonl|ndjson|json|csv|parquet)(\.gz|\.zst)?$", re.IGNORECASE)
# What transformers and Unsloth read of a model, and its card. Code is among them so that it is refused, not overlooked;
# `consolidated` is a second set of weights, in its author's own format.
_MODEL = re.compile(r"^((?!consolidated)[^/]+\.(safetensors|json|model|txt|jinja|tiktoken|md|py)|LICENSE[^/]*)$")
_PICKLED = re.compile(r"\.(bin|pt|pth|ckpt|pkl)$")
_DATASET_CARD = re.compile(r"(^|/)dataset_infos?\.json$")
_AT_A_TIME = 16
_NO_TIME = datetime.fromtimestamp(0, UTC)  # a download asks for none


@dataclass(frozen=True)
class DatasetFiles:
    """A dataset on the local disk, its files in the order in which they are read."""

    train: tuple[Path, ...]
    eval: tuple[Path, ...]
    uris: dict[Path, str]

    def name_of(self, path: Path) -> str:
        """The URI that a file came from."""
        return self.uris[path]


def freeze(config: RunConfig, image: str | None, code_version: str, again: int = 0) -> Spec:
    """The spec of a config: its inputs listed, and each pinned by tag, size and version as it is now.

    What is wrong with several inputs is told at once.

    Raises:
        NoInputError: an input is missing, empty or archived.
        DataError: one is not taken: an archive, loader code, pickled weights, an unsafe key.
        ConfigError, PermissionDenied, UnavailableError: as its store says.
    """
    recipe = resolved(config.recipe)
    held_out = recipe.dataset.eval
    problems: list[JobError] = []

    def look(at: Callable[[], T]) -> T | None:
        try:
            return at()
        except (NoInputError, DataError, ConfigError, PermissionDenied) as error:
            problems.append(error)
            return None

    base = look(lambda: frozen_model(recipe.base_model))
    train = look(lambda: _frozen_rows(recipe.dataset.train))
    rows = () if held_out is None or isinstance(held_out, float) else look(lambda: _frozen_rows(held_out))
    template = look(lambda: _template_text(recipe.chat_template))
    if base is None or train is None or rows is None or problems:
        raise together(problems)
    return Spec(
        recipe=recipe,
        gpus=config.compute.gpus,
        base_model=base,
        dataset=FrozenDataset(train=train, eval=rows),
        chat_template=template,
        image=image,
        code_version=code_version,
        again=again,
    )


def frozen_model(uri: str) -> FrozenModel:
    """A base model as it is now, in a store, a directory or a hub: of its files those that are read.

    Raises:
        NoInputError: there is none, or not the whole of it: config.json is what is put there last.
        DataError: its weights are pickled.
        ConfigError, PermissionDenied, UnavailableError: as its store says.
    """
    commit, files = _tree(uri, "model")
    kept = tuple(file for path, file in files.items() if is_of_model(path))
    if not any(map(is_weights, kept)):
        if any(_PICKLED.search(path) for path in files):
            raise DataError(
                f"the base model {uri} has pickled weights only, and loading those can run any code",
                "Convert it where you trust it: save_pretrained writes safetensors.",
            )
        lacking = "has no safetensors" if files else "is not there"
        raise NoInputError(f"the base model {uri} {lacking}", "Name a prefix or directory that holds a model.")
    if "config.json" not in files:
        raise NoInputError(
            f"the base model {uri} has no config.json",
            "If it is still being copied there, wait for the end; if that was cut, start the copy again.",
        )
    return FrozenModel(uri=uri, commit=commit, files=kept)


def is_of_model(name: str) -> bool:
    """Whether a file below a base model's URI is read as part of it."""
    return is_visible(name) and bool(_MODEL.match(name))


def is_weights(file: FrozenObject) -> bool:
    """Whether a file of a base model holds weights."""
    return file.uri.endswith(".safetensors")


def file_name(file: FrozenObject) -> str:
    """The name of a base model's file in its directory."""
    return PurePosixPath(file.uri).name


def unfrozen(config: RunConfig, image: str | None, code_version: str) -> Spec:
    """The spec of a config whose inputs are left to the first attempt to pin: it names them, and has none of their files."""
    recipe = resolved(config.recipe)
    return Spec(
        recipe=recipe,
        gpus=config.compute.gpus,
        base_model=FrozenModel(uri=recipe.base_model, files=()),
        dataset=FrozenDataset(train=()),
        image=image,
        code_version=code_version,
    )


def anew(spec: Spec, storage: Storage) -> Spec:
    """The spec with the first ordinal that no run under the root `storage` has: a fresh run of the same."""
    while True:
        spec = spec.model_copy(update={"again": spec.again + 1})
        keys = RunKeys(run_id_of(spec.recipe.name, canonical_bytes(spec)))
        if not (
            storage.head(keys.spec) or storage.head(keys.config)
        ):  # a pod that is to freeze it has left no spec yet
            return spec


def _template_text(chat_template: str | None) -> str | None:
    """The text of a `.jinja` file: it decides what is trained on, so an edit makes another run."""
    if chat_template is None or not chat_template.endswith(".jinja"):
        return None
    try:
        return Path(chat_template).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NoInputError(
            f"the chat template {chat_template} cannot be read: {error}", "Check chat_template."
        ) from error


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with its local paths absolute, so that it means the same wherever it is read."""
    dataset, template = recipe.dataset, recipe.chat_template
    held_out = dataset.eval
    paths = {
        "train": _absolute(dataset.train),
        "eval": held_out if held_out is None or isinstance(held_out, float) else _absolute(held_out),
    }
    return recipe.model_copy(
        update={
            "base_model": _absolute_path(recipe.base_model),
            "chat_template": _absolute_path(template) if template and template.endswith(".jinja") else template,
            "dataset": dataset.model_copy(update=paths),
        }
    )


def download_bytes(spec: Spec) -> tuple[int, int, int]:
    """How much of a spec comes over the network onto the disk: base model, dataset; and the size of the base's weights."""
    base, rows = spec.base_model.files, spec.dataset.train + spec.dataset.eval
    return (
        sum(file.size for file in base if not _is_local(file.uri)),
        sum(file.size for file in rows if not _is_local(file.uri)),
        sum(file.size for file in base if is_weights(file)),
    )


def fetch_base_model(spec: Spec, directory: Path, progress: Progress = no_progress) -> Path:
    """The base model's directory: `directory`, filled; of a local model its own, unchanged since it was frozen.

    Raises:
        DataError: a file has changed since it was frozen, or arrived damaged.
    """
    return fetch_model_files(spec.base_model.files, directory, progress)[0].parent


def fetch_model_files(
    files: Sequence[FrozenObject], directory: Path, progress: Progress = no_progress
) -> Sequence[Path]:
    """Where some files of a base model are: in `directory`, fetched; local ones where they were, unchanged.

    Raises:
        DataError: a file has changed since it was frozen, or arrived damaged.
    """
    return _fetch(files, [directory / file_name(file) for file in files], "model", progress)


def fetch_dataset(spec: Spec, directory: Path, progress: Progress = no_progress) -> DatasetFiles:
    """The dataset's files: `directory/train-00000.jsonl` and so on; local ones where they are, unchanged.

    Raises:
        DataError: a file has changed since it was frozen, or arrived damaged.
    """
    train, held_out = spec.dataset.train, spec.dataset.eval
    paths = [
        directory / f"{split}-{number:05d}{_suffix(file.uri)}"
        for split, files in (("train", train), ("eval", held_out))
        for number, file in enumerate(files)
    ]
    there = _fetch(train + held_out, paths, "dataset", progress)
    uris = dict(zip(there, (file.uri for file in train + held_out), strict=True))
    return DatasetFiles(tuple(there[: len(train)]), tuple(there[len(train) :]), uris)


def _absolute(reference: Uris) -> Uris:
    return _absolute_path(reference) if isinstance(reference, str) else tuple(map(_absolute_path, reference))


def _absolute_path(uri: str) -> str:
    if not _is_local(uri):
        return uri
    return str(Path(uri).absolute()) + ("/" if uri.endswith("/") else "")


def _is_local(uri: str) -> bool:
    return "://" not in uri


def _frozen_rows(reference: Uris) -> tuple[FrozenObject, ...]:
    """The objects of one split, each once: in the order in which they are named, and below a name sorted."""
    found: dict[str, FrozenObject] = {}
    for uri in (reference,) if isinstance(reference, str) else reference:
        files = _rows_at(uri)
        if not files:
            raise NoInputError(f"{uri} holds no file of rows", "Check the URI; a prefix ends with a slash.")
        if archives := [file.uri for file in files if _ARCHIVE.search(file.uri)]:
            raise DataError(f"{archives[0]} is an archive", "Unpack it, and name the files that were in it.")
        found |= {file.uri: file for file in files}
    return tuple(found.values())


def _rows_at(uri: str) -> list[FrozenObject]:
    """The files that one reference of a config names: a hub's dataset, a file, a pattern, a prefix or a directory."""
    if uri.startswith("hf://"):
        return _split_of_hub(uri)
    storage, key = locate(uri)
    if key and not key.endswith("/") and storage.head(key):  # first, for a file's own name may look like a pattern
        return _frozen([(storage, key)])
    if _WILDCARD.search(uri):
        return _matching(uri)
    if uri.endswith("/") or not key or (_is_local(uri) and Path(uri).is_dir()):
        return list(_tree(uri, "dataset")[1].values())
    return []


def _split_of_hub(uri: str) -> list[FrozenObject]:
    """A hub's files of the split that is named, by their paths; when none is named, those of `train`, else all."""
    from job import hub  # half a second of imports, for those who name a hub

    _, files = _tree(uri, "dataset")
    if code := [path for path in files if path.endswith(".py")]:
        raise DataError(f"{uri} is loaded by code of its own ({code[0]}), which is never run", "Take one without code.")
    split = hub.parse(uri).split
    rows = {path: file for path, file in files.items() if _ROWS.search(path) and not _DATASET_CARD.search(path)}
    word = re.compile(rf"(?<![a-z0-9]){re.escape(split or 'train')}(?![a-z0-9])", re.IGNORECASE)
    return [file for path, file in rows.items() if word.search(path)] or ([] if split else list(rows.values()))


def _matching(pattern: str) -> list[FrozenObject]:
    """The files that a pattern matches: `*`, `?` and `[]` within a name, `**` over directories."""
    base = _WILDCARD.split(pattern)[0].rpartition("/")[0] + "/"
    storage, prefix = locate(base)
    wanted = pattern.removeprefix(base)
    if _is_local(base):  # where listing all that is below, to match it here, could mean a whole disk
        found = glob.glob(wanted, root_dir=base, recursive=True)  # noqa: PTH207
        names = sorted(name for name in found if Path(base, name).is_file())
    else:
        below = [stat.key.removeprefix(prefix) for stat in storage.list(prefix)]
        names = [name for name in below if matches(name, wanted)]
    return _frozen([(storage, prefix + name) for name in names if is_visible(name)])


def matches(name: str, pattern: str) -> bool:
    """Whether a key matches a pattern as a shell's globstar has it."""

    def all_match(segments: Sequence[str], wanted: Sequence[str]) -> bool:
        if not wanted:
            return not segments
        if wanted == ["**"]:
            return bool(segments)
        if wanted[0] == "**":
            return any(all_match(segments[skipped:], wanted[1:]) for skipped in range(len(segments) + 1))
        return bool(segments) and fnmatchcase(segments[0], wanted[0]) and all_match(segments[1:], wanted[1:])

    return all_match(name.split("/"), pattern.split("/"))


def is_visible(name: str) -> bool:
    """Whether a key below a prefix is a file of its own right: no `.hidden` one, no `_SUCCESS`, no folder's marker."""
    return all(segment and segment[0] not in "._" for segment in name.split("/"))


def _tree(uri: str, kind: "hub.Kind") -> tuple[str | None, dict[str, FrozenObject]]:
    """A hub's commit, else None; and the visible files below a URI, by their paths from there."""
    if uri.startswith("hf://"):
        from job import hub

        commit, found = hub.list_files(uri, kind)
        return commit, {path: file for path, file in found.items() if is_visible(path)}
    storage, prefix = locate(uri.rstrip("/") + "/")
    names = [stat.key.removeprefix(prefix) for stat in storage.list(prefix)]
    names = [name for name in names if is_visible(name)]
    return None, dict(zip(names, _frozen([(storage, prefix + name) for name in names]), strict=True))


def _frozen(places: Iterable[tuple[Storage, str]]) -> list[FrozenObject]:
    """Each object as its store has it now. A HEAD for each, for a listing knows no versions and no archives."""

    def pin(place: tuple[Storage, str]) -> FrozenObject:
        storage, key = place
        stat = storage.head(key)
        if stat is None:
            raise NoInputError(f"{storage.uri}/{key} was listed and is gone", "Start the run again.")
        return FrozenObject(uri=f"{storage.uri}/{key}", size=stat.size, etag=stat.etag, version_id=stat.version_id)

    with ThreadPoolExecutor(_AT_A_TIME, "head") as workers:
        return list(workers.map(pin, places))


def _fetch(files: Sequence[FrozenObject], paths: Sequence[Path], kind: "hub.Kind", progress: Progress) -> list[Path]:
    """Where each file is on the local disk: at its path, or where it was if it is a local one."""
    there = [Path(file.uri) if _is_local(file.uri) else path for file, path in zip(files, paths, strict=True)]
    wanted: list[tuple[Storage, Stat, Path]] = []
    for file, path in zip(files, there, strict=True):
        if file.uri.startswith("hf://"):
            from job import hub

            hub.download(file, kind, path, progress)
            continue
        storage, key = locate(file.uri)
        if not _is_local(file.uri):
            wanted.append((storage, Stat(key, file.size, file.etag, _NO_TIME, file.version_id), path))
        elif (stat := storage.head(key)) is None or stat.etag != file.etag:
            raise DataError(f"{file.uri} has changed since the run was frozen", "Start a fresh run with --again.")
    download_all(wanted, progress)
    return there


def _suffix(uri: str) -> str:
    """The suffix that tells what is in a file, `.jsonl.gz`."""
    name = PurePosixPath(uri)
    return f"{PurePosixPath(name.stem).suffix}{name.suffix}" if name.suffix in _COMPRESSED else name.suffix
