"""From files on scratch to published artifacts."""

from collections.abc import Mapping
from pathlib import Path

from job.attempt import Attempt
from job.contract.documents import Artifact, Published, TrainSummary
from job.contract.errors import DataError, JobError
from job.contract.model import canonical_bytes
from job.moving import Moving
from job.storage import Progress, Storage
from job.storage.transfer import upload_directory


def publish_directory(attempt: Attempt, kind: str, directory: Path) -> tuple[Artifact, ...]:
    """Uploads a directory under the attempt's own prefix, and asks the store for each object once.

    Args:
        attempt: whose prefix.
        kind: lora, gguf, merged or report.
        directory: whose files; one that is not there gives no artifact.

    Raises:
        FencedError: it failed, and a newer attempt has taken over: that one ends the uploads of those before it.
        DataError: when the store does not hold what was sent.
    """
    if not directory.is_dir():
        return ()
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    moving = Moving(f"publish {kind}", size)
    try:
        return upload_verified(directory, attempt.run.storage, attempt.keys.artifacts(kind), moving)
    except JobError:
        attempt.assert_newest()
        raise


def upload_verified(directory: Path, storage: Storage, prefix: str, progress: Progress) -> tuple[Artifact, ...]:
    """Uploads a directory's files to a prefix, and asks the store for each object once.

    Raises:
        DataError: when the store does not hold what was sent.
    """
    sent = upload_directory(directory, storage, prefix, progress)
    for _, uploaded in sent:
        stat = storage.head(uploaded.stat.key)
        if stat is None or (stat.size, stat.checksum) != (uploaded.stat.size, uploaded.stat.checksum):
            raise DataError(
                f"{storage.uri}/{uploaded.stat.key} is not what was uploaded", "Ask who writes to this bucket."
            )
    return tuple(
        Artifact(
            key=uploaded.stat.key,
            size=uploaded.stat.size,
            sha256=uploaded.sha256,
            checksum=uploaded.stat.checksum,
            version_id=uploaded.stat.version_id,
        )
        for _, uploaded in sorted(sent, key=lambda pair: pair[0])
    )


def publish_adapter(attempt: Attempt, directory: Path, summary: TrainSummary, versions: Mapping[str, str]) -> Published:
    """Uploads the adapter, then its own commit mark, so that a failed export leaves a usable adapter."""
    published = Published(
        attempt=attempt.number,
        spec_sha256=attempt.run.spec_sha256,
        files=publish_directory(attempt, "lora", directory),
        train=summary,
        versions=dict(versions),
    )
    return mark_published(attempt, published)


def mark_published(attempt: Attempt, published: Published) -> Published:
    """Puts the adapter's commit mark."""
    attempt.run.storage.put(attempt.keys.published, canonical_bytes(published))
    return published
