"""A run: its frozen spec, its id, and whether it has its result."""

from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

import structlog

from job.contract.config import RunConfig
from job.contract.documents import Artifact, Latest, Result, Spec
from job.contract.errors import DataError, TakenError
from job.contract.keys import RunKeys, index_key, latest_key, run_id_of
from job.contract.model import canonical_bytes, differences, read_document, sha256_hex
from job.inputs import anew, freeze, resolved
from job.settings import Settings
from job.storage import Stat, Storage

log = structlog.get_logger()


@dataclass(frozen=True)
class Run:
    """A run under its root."""

    storage: Storage
    spec: Spec
    run_id: str

    @property
    def keys(self) -> RunKeys:
        """The run's keys."""
        return RunKeys(self.run_id)

    @property
    def spec_sha256(self) -> str:
        """The hash of the spec's bytes."""
        return sha256_hex(canonical_bytes(self.spec))

    @property
    def uri(self) -> str:
        """Where the run is kept."""
        return f"{self.storage.uri}/{self.keys.prefix}"


def identify(config: RunConfig, storage: Storage, settings: Settings) -> Run:
    """The run that a start is about. Nothing is written.

    A run id that is given and has a spec keeps it, so that a retry trains on the bytes that the first attempt froze.

    Raises:
        TakenError: when the run id belongs to another config.
    """
    if settings.run_id and (found := storage.get(RunKeys(settings.run_id).spec)):
        spec = read_document(Spec, found[0], f"{storage.uri}/{RunKeys(settings.run_id).spec}")
        if changed := changes(spec, config):
            raise TakenError(
                f"the run {settings.run_id} belongs to another config: {changed}",
                "Give this config another name, or start the run anew with --again.",
            )
        return Run(storage, spec, settings.run_id)
    spec = freeze(config, settings.image, version("finetune"), settings.ordinal)
    if settings.again:
        spec = anew(spec, storage)
    return Run(storage, spec, settings.run_id or run_id_of(spec.recipe.name, canonical_bytes(spec)))


def changes(spec: Spec, config: RunConfig) -> str:
    """Which keys differ between a frozen spec and a config; empty when none does."""
    before = spec.recipe.model_dump(mode="json") | {"compute": {"gpus": spec.gpus}}
    now = resolved(config.recipe).model_dump(mode="json") | {"compute": {"gpus": config.compute.gpus}}
    return ", ".join(differences(before, now))


def put_spec(run: Run, config_bytes: bytes) -> None:
    """Writes the frozen spec, and the first launch's config beside it.

    Raises:
        TakenError: when the run id got another spec in the meantime.
    """
    if run.storage.put_if_absent(run.keys.spec, canonical_bytes(run.spec)) is None:
        raise TakenError(f"{run.uri}spec.json holds another spec", "Start again: the run then goes by that spec.")
    run.storage.put_if_absent(run.keys.config, config_bytes)


def finished(run: Run) -> Result | None:
    """The run's verified result; also that of the newest run of the same spec, put as this run's own.

    Raises:
        TakenError: when a result's objects are no longer there as it names them.
    """
    if found := run.storage.get(run.keys.result):
        result = read_document(Result, found[0], f"{run.uri}result.json")
        if result.spec_sha256 != run.spec_sha256:
            raise TakenError(f"{run.uri}result.json is the result of another spec", "Use another run id.")
        verify(run.storage, result)
        return result
    return _same_as_latest(run)


def _same_as_latest(run: Run) -> Result | None:
    """A night on which nothing has changed: the newest run's result, under this run's id."""
    if not (found := run.storage.get(latest_key(run.spec.recipe.name))):
        return None
    latest = read_document(Latest, found[0], latest_key(run.spec.recipe.name))
    if latest.spec_sha256 != run.spec_sha256 or latest.run_id == run.run_id:
        return None
    try:
        result = finished(Run(run.storage, run.spec, latest.run_id))
    except TakenError as error:  # what the newest run made has gone: tonight there is something to train
        log.warning("the newest run of this spec cannot stand for this one", message=error.message)
        return None
    if result is None:
        return None
    return result.model_copy(update={"run_id": run.run_id, "same_as": latest.run_id})


def verify(storage: Storage, result: Result) -> None:
    """Asks the store for each object that a result names.

    Raises:
        TakenError: naming the first that is missing or differs.
    """
    for artifact in result.artifacts.all():
        stat = storage.head(artifact.key)
        if not stands(stat, artifact):
            raise TakenError(
                f"{storage.uri}/{artifact.key} is not what {result.run_id}'s result names",
                "Its artifacts were changed or deleted. Train it anew with --again.",
            )


def stands(stat: Stat | None, artifact: Artifact) -> bool:
    """Whether the store has an object as a document names it."""
    if stat is None or stat.size != artifact.size:
        return False
    return artifact.checksum is None or stat.checksum == artifact.checksum


def put_result(run: Run, result: Result) -> Result:
    """Commits the run: result.json, read back, then the index and the pointer to the newest run.

    Returns:
        The result that stands: another attempt's, where that was first.
    """
    run.storage.put_if_absent(run.keys.result, canonical_bytes(result))
    found = run.storage.get(run.keys.result)
    if found is None:
        raise DataError(f"{run.uri}result.json was written and is not there", "Ask who deletes objects in this bucket.")
    standing = read_document(Result, found[0], f"{run.uri}result.json")
    verify(run.storage, standing)
    finish(run, standing)
    return standing


def finish(run: Run, result: Result) -> None:
    """Whatever a verified result may still lack: its place in the index, and in latest.json if it is the newest."""
    if result.same_as:
        return
    stat = run.storage.head(run.keys.spec)
    if stat is None:
        return
    name, froze = run.spec.recipe.name, stat.last_modified
    run.storage.put_if_absent(index_key(name, f"{froze:%Y%m%dT%H%M%SZ}", run.run_id), b"")
    latest = Latest(run_id=run.run_id, spec_sha256=run.spec_sha256, spec_last_modified=froze)
    while not _advance(run.storage, latest_key(name), latest):
        pass


def _advance(storage: Storage, key: str, latest: Latest) -> bool:
    """Moves the pointer forward, never back; False when someone else moved it meanwhile."""
    found = storage.get(key)
    if found is None:
        return storage.put_if_absent(key, canonical_bytes(latest)) is not None
    standing = read_document(Latest, found[0], key)
    if _order(standing) >= _order(latest):
        return True
    return storage.put_if_match(key, canonical_bytes(latest), found[1].etag) is not None


def _order(latest: Latest) -> tuple[datetime, str]:
    return latest.spec_last_modified, latest.run_id
