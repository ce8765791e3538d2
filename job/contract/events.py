"""What a child tells the supervisor, one JSON object a line on one pipe."""

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from job.contract.documents import TrainSummary
from job.contract.model import Document


class Told(Document):
    """The base of every event."""

    schema_version: Literal[1] = 1


class Loaded(Told):
    """The base model is loaded and has its adapter."""

    event: Literal["loaded"] = "loaded"
    trainable_parameters: int
    total_parameters: int
    dtype: str
    linear_4bit: int
    """How many projections are 4-bit."""
    device: str
    memory_bytes: int
    effective_batch: int


class Training(Told):
    """The training loop begins; from now on there is something to save."""

    event: Literal["training"] = "training"
    step: int
    """Steps that were done before: above 0 when it goes on from a checkpoint."""
    of: int


class Step(Told):
    """An optimizer step was logged."""

    event: Literal["step"] = "step"
    step: int
    of: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    tokens_per_second: float
    eta_seconds: float


class Alive(Told):
    """Training or an evaluation goes on: told at the end of each batch, at most once a second."""

    event: Literal["alive"] = "alive"


class Evaluated(Told):
    """The eval split was gone through."""

    event: Literal["evaluated"] = "evaluated"
    step: int
    loss: float


class Saved(Told):
    """A checkpoint is whole on scratch."""

    event: Literal["saved"] = "saved"
    step: int
    directory: str


class SampleText(Told):
    """A piece of a sample's answer, streamed."""

    event: Literal["sample_text"] = "sample_text"
    model: Literal["base", "tuned"]
    prompt: int
    text: str


class Sample(Told):
    """A sample's whole answer; `error` where it could not be made."""

    event: Literal["sample"] = "sample"
    model: Literal["base", "tuned"]
    prompt: str
    answer: str
    error: str | None = None


class Trained(Told):
    """Training is over and the adapter is whole on scratch."""

    event: Literal["trained"] = "trained"
    summary: TrainSummary


class Exporting(Told):
    """A step of the export began."""

    event: Literal["exporting"] = "exporting"
    what: str
    step: int
    of: int


class Exported(Told):
    """A file of the export is whole and checked."""

    event: Literal["exported"] = "exported"
    kind: Literal["merged", "gguf"]
    file: str
    size: int
    facts: dict[str, str | int | float] = {}
    """What the check found."""


class Versions(Told):
    """The versions of the training stack."""

    event: Literal["versions"] = "versions"
    versions: dict[str, str]


class Failed(Told):
    """Why the child is about to end with `code`."""

    event: Literal["failed"] = "failed"
    code: int
    message: str
    resolution: str = ""


Event = Annotated[
    Loaded
    | Training
    | Step
    | Alive
    | Evaluated
    | Saved
    | SampleText
    | Sample
    | Trained
    | Exporting
    | Exported
    | Versions
    | Failed,
    Field(discriminator="event"),
]
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def parse_event(line: str | bytes) -> Event:
    """The event of one line.

    Raises:
        pydantic.ValidationError: when it is none.
    """
    return _EVENT.validate_json(line)
