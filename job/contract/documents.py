"""The JSON documents of a run, in S3 and in the termination message. Each carries its schema's version."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from job.contract.config import Recipe
from job.contract.model import Document

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
STALE_SECONDS = 90
"""An attempt whose last sign of life is older, by the store's clock, has died; FINETUNE_STALE_SECONDS in the job."""

Stage = Literal["start", "download", "train", "export", "publish"]


class FrozenObject(Document):
    """One input object, pinned."""

    uri: str
    """Where it is: `s3://bucket/key`, `hf://org/name@commit/file` or an absolute path."""
    size: Annotated[int, Field(ge=0)]
    """In bytes."""
    etag: str
    """The store's tag of these very bytes."""
    version_id: str | None = None
    """The object's version, in a bucket that keeps versions."""


class FrozenModel(Document):
    """The base model, pinned."""

    uri: str
    """As the config names it."""
    commit: str | None = None
    """The commit of a model on a hub."""
    files: Annotated[tuple[FrozenObject, ...], Field(strict=False)]
    """Its files, sorted by URI."""


class FrozenDataset(Document):
    """The dataset's objects, pinned, in the order in which they are read."""

    train: Annotated[tuple[FrozenObject, ...], Field(strict=False)]
    eval: Annotated[tuple[FrozenObject, ...], Field(strict=False)] = ()


class Spec(Document):
    """`spec.json`: everything that decides the weights and the artifacts. Exactly the bytes that the run id hashes."""

    schema_version: Literal[1] = 1
    recipe: Recipe
    gpus: int
    base_model: FrozenModel
    dataset: FrozenDataset
    chat_template: str | None = None
    """The text of the `.jinja` file that the config names; null where it names none."""
    image: str | None
    """The image's reference, by digest; null outside a container."""
    code_version: str
    """The version of this package."""
    again: int = 0
    """How many runs of the same spec were asked for before this one."""


class Claim(Document):
    """`attempts/<n>/claim.json`: who owns attempt n, and writes under it alone."""

    schema_version: Literal[1] = 1
    attempt: int
    spec_sha256: Sha256
    owner: str
    """A random id of this very process, by which a lost answer to the put is recognised as our own."""
    site: str | None = None
    namespace: str | None = None
    job_uid: str | None = None
    pod: str | None = None
    node: str | None = None


class Lease(Document):
    """`lease.json`: the newest attempt, that it lives, and how far it is."""

    schema_version: Literal[1] = 1
    attempt: int
    heartbeat_at: datetime
    """By the writer's clock, for people; staleness is judged by the store's."""
    stage: Stage
    step: int | None = None
    of: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None


class Artifact(Document):
    """One published object."""

    key: str
    """Under the root."""
    size: int
    """In bytes."""
    sha256: Sha256
    checksum: str | None = None
    """What the store itself confirmed, `CRC64NVME:<base64>`; null in a directory."""
    version_id: str | None = None


class Fingerprint(Document):
    """What must be the same where training goes on from a checkpoint."""

    spec_sha256: Sha256
    versions: dict[str, str]
    """Of the training stack."""
    device: str
    """`gpu` or `cpu`: their optimizers keep different states."""
    world_size: Annotated[int, Field(ge=1)]
    """Processes that train together; each has a random state of its own."""


class Checkpoint(Document):
    """`attempts/<n>/checkpoints/step-<step>/complete.json`: a checkpoint that is whole, put after its files."""

    schema_version: Literal[1] = 1
    step: Annotated[int, Field(ge=1)]
    fingerprint: Fingerprint
    files: Annotated[tuple[Artifact, ...], Field(strict=False)]


class Artifacts(Document):
    """What a run delivers, by kind."""

    lora: Annotated[tuple[Artifact, ...], Field(strict=False)] = ()
    gguf: Annotated[tuple[Artifact, ...], Field(strict=False)] = ()
    merged: Annotated[tuple[Artifact, ...], Field(strict=False)] = ()
    report: Annotated[tuple[Artifact, ...], Field(strict=False)] = ()

    def all(self) -> tuple[Artifact, ...]:
        """Every artifact."""
        return self.lora + self.gguf + self.merged + self.report


class TrainSummary(Document):
    """What training measured."""

    steps: int
    train_loss: float
    """The mean loss of the last tenth of the steps, at least one."""
    eval_loss: float | None
    tokens_seen: int
    """Tokens that went through the model, padding excluded."""
    tokens_trained: int
    """Of these, the ones that the loss was taken on."""
    trainable_parameters: int
    total_parameters: int
    effective_batch: int
    """Rows in one optimizer step, over all GPUs."""
    seconds: float
    """Inside the training loop."""
    device: str
    """The GPU's name, or `cpu`."""
    dtype: str
    peak_memory_bytes: int
    """Device memory reserved at most; on a CPU the process's peak resident set."""
    memory_after_load_bytes: int


class Published(Document):
    """`attempts/<n>/lora/published.json`: an adapter that is whole, put after its files.

    A later attempt keeps such an adapter and does what is left, so all that its result needs of training stands here.
    """

    schema_version: Literal[1] = 1
    attempt: int
    spec_sha256: Sha256
    files: Annotated[tuple[Artifact, ...], Field(strict=False)]
    train: TrainSummary
    """Its `eval_loss` is null until the last evaluation, which comes after the adapter."""
    versions: dict[str, str]
    """Of the training stack."""


class Result(Document):
    """`result.json`: the run's answer and its commit mark, written last."""

    schema_version: Literal[1] = 1
    run_id: str
    spec_sha256: Sha256
    attempt: int
    same_as: str | None = None
    """The run whose artifacts these are, where nothing had changed since it."""
    artifacts: Artifacts
    train: TrainSummary
    seconds_by_stage: dict[str, float]
    gpu_seconds: float
    """GPUs held, times seconds."""
    versions: dict[str, str]
    image: str | None
    code_version: str
    code_revision: str | None
    """The git commit of the code, where known."""
    parents: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """What the run was made from: base model and dataset URIs."""


class Latest(Document):
    """`models/<name>/latest.json`: the newest succeeded run of that name."""

    schema_version: Literal[1] = 1
    run_id: str
    spec_sha256: Sha256
    spec_last_modified: datetime
    """The store's LastModified of that run's spec.json, which decides what is newer."""


class Cancelled(Document):
    """`cancelled.json`: who cancelled the run. The next cancel overwrites it.

    It counts only while neither a Job with another uid exists, nor a claim of one that is newer than `attempt`.
    """

    schema_version: Literal[1] = 1
    by: str
    at: datetime
    """By the canceller's clock, for people."""
    job_uid: str | None
    """The Job that was deleted; null where there was none."""
    attempt: Annotated[int, Field(ge=0)] = 0
    """The newest attempt before the Job was deleted, 0 when there was none. Without it an older Job's claim, which the
    cancelled Job was to continue, could not be told from a claim of a later launch."""


class Outcome(Document):
    """`outcome.json` and the termination message: how an attempt ended."""

    schema_version: Literal[1] = 1
    code: int
    name: str
    stage: Stage
    step: int | None = None
    message: str
    resolution: str = ""
