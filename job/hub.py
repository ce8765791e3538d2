"""Models and datasets of a hub, `hf://organisation/name`, as `huggingface_hub` reaches it (HF_ENDPOINT, HF_TOKEN)."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Literal

import httpx
from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]  # public, says its reference
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from job.contract.documents import FrozenObject
from job.contract.errors import ConfigError, DataError, JobError, NoInputError, PermissionDenied, UnavailableError
from job.storage import Progress
from job.storage.local_files import local_errors, whole_file

Kind = Literal["model", "dataset"]

_REFERENCE = re.compile(r"^hf://([\w.-]+/[\w.-]+)(?:@([^:]+))?(?::([\w.-]+))?$")
_FILE = re.compile(r"^hf://([\w.-]+/[\w.-]+)@([0-9a-f]{40})/(.+)$")
_CHUNK_BYTES = 1 << 20
_patiently = retry(
    retry=retry_if_exception_type(UnavailableError),
    stop=stop_after_attempt(4),
    wait=wait_random_exponential(max=20),
    reraise=True,
)
_SILENCE_SECONDS = 60


@dataclass(frozen=True)
class Reference:
    """What a config says of a hub: `hf://organisation/name[@revision][:split]`."""

    name: str
    revision: str | None
    split: str | None


def parse(uri: str) -> Reference:
    """The parts of a config's `hf://` URI.

    Raises:
        ConfigError: when it has another form.
    """
    found = _REFERENCE.match(uri)
    if found is None:
        raise ConfigError(f"{uri} is not hf://organisation/name[@revision][:split]", "Correct the URI.")
    return Reference(found[1], found[2], found[3])


@contextmanager
def _hub_errors(uri: str) -> Iterator[None]:
    """Turn what the hub's library raises into our kinds of error."""
    try:
        yield
    except HfHubHTTPError as error:
        raise _meaning(error, uri) from error
    except OfflineModeIsEnabled as error:
        raise ConfigError(f"{uri}: the hub is switched off by HF_HUB_OFFLINE", "Unset it, or use s3://.") from error
    except HFValidationError as error:
        raise ConfigError(f"{uri}: {error}", "Correct the name.") from error
    except httpx.HTTPError as error:
        raise UnavailableError(
            f"{uri}: {str(error) or type(error).__name__}", "Check the network and HF_ENDPOINT."
        ) from error


def _meaning(error: HfHubHTTPError, uri: str) -> JobError:
    status = error.response.status_code
    message = f"{uri}: the hub answered {status}"
    if status in (401, 403):
        # A hub gives 401 also for a name that does not exist, so as not to say which private ones do.
        return PermissionDenied(message, "Check the name, accept the model's terms on the hub, and set HF_TOKEN.")
    if status == 429 or status >= 500:
        return UnavailableError(message, "Check HF_ENDPOINT; the run can be started again.")
    return NoInputError(message, "Check the name and the revision.")


@_patiently
def list_files(uri: str, kind: Kind) -> tuple[str, dict[str, FrozenObject]]:
    """The commit that a reference means now, and its files by path, sorted.

    A file's URI is `hf://organisation/name@commit/path`; its tag is the SHA-256 of a large file, git's id of any other.

    Raises:
        NoInputError, PermissionDenied, UnavailableError, ConfigError: as the hub answers.
    """
    reference = parse(uri)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    with _hub_errors(uri):
        commit = api.repo_info(reference.name, repo_type=kind, revision=reference.revision).sha
        tree = list(api.list_repo_tree(reference.name, repo_type=kind, revision=commit, recursive=True))
    if commit is None:
        raise NoInputError(f"{uri} has no commit", "Push something to it first.")
    files = sorted((entry for entry in tree if isinstance(entry, RepoFile)), key=lambda file: file.path)
    return commit, {
        file.path: FrozenObject(
            uri=f"hf://{reference.name}@{commit}/{file.path}",
            size=file.size,
            etag=file.lfs.sha256 if file.lfs else file.blob_id,
        )
        for file in files
    }


@_patiently
def download(file: FrozenObject, kind: Kind, path: Path, progress: Progress) -> None:
    """Fetch a frozen file to `path`, whole, its hash verified.

    Raises:
        DataError: it is not the file that was frozen.
        NoInputError, PermissionDenied, UnavailableError: as the hub answers.
    """
    found = _FILE.match(file.uri)
    if found is None:
        raise DataError(f"{file.uri} is not a file of a hub's commit")
    url = hf_hub_url(found[1], found[3], repo_type=kind, revision=found[2], endpoint=os.environ.get("HF_ENDPOINT"))
    moved = 0
    try:
        with local_errors(path), whole_file(path) as target, _hub_errors(file.uri):
            with get_session().stream(
                "GET", url, headers=build_hf_headers(), follow_redirects=True, timeout=_SILENCE_SECONDS
            ) as answer:
                hf_raise_for_status(answer)
                for chunk in answer.iter_bytes(_CHUNK_BYTES):
                    target.write(chunk)
                    moved += len(chunk)
                    progress(len(chunk))
            target.seek(0)
            if _etag(target, moved, large=len(file.etag) == 64) != file.etag:
                raise DataError(f"{file.uri} arrived damaged, or is no longer what was frozen", "Start the run again.")
    except BaseException:
        progress(-moved)  # what is thrown away has not moved
        raise


def _etag(file: BufferedRandom, size: int, large: bool) -> str:
    """The tag of a file's content: its SHA-256 when it is large, git's blob id otherwise."""
    if large:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha1(b"blob %d\0" % size + file.read(), usedforsecurity=False).hexdigest()
