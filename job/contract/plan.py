"""`plan.json`: all that a child is told. It holds local paths only; a child knows nothing of S3 or Kubernetes."""

from typing import Annotated, Literal

from pydantic import Field

from job.contract.config import Recipe
from job.contract.model import Document


class Plan(Document):
    """What the training child and the export child work from. Paths are absolute."""

    schema_version: Literal[1] = 1
    run_id: str
    recipe: Recipe
    gpus: int
    base_model: str
    """The base model's directory, as the supervisor checked it."""
    tokenizer: str
    """The tokenizer's directory: the base's files, with the config's chat template."""
    stop_token_ids: Annotated[tuple[int, ...], Field(strict=False)]
    """The tokens that end an answer."""
    sample_ids: Annotated[tuple[tuple[int, ...], ...], Field(strict=False)] = ()
    """`samples.prompts`, rendered and tokenized."""
    train_rows: str
    """An Arrow stream of `input_ids` and `labels` (-100: not trained on), in the order in which they were read."""
    eval_rows: str | None
    checkpoints: str
    """Holds `step-000010` directories, each whole from the moment its name is there."""
    adapter: str
    merged: str
    gguf: str
    report: str
    trainer: str
    """Where the trainer may write what nobody keeps."""
    llama_cpp: str
    """The pinned llama.cpp: converter and quantizer."""
    events: str
    """The pipe that rank 0 writes events to."""
    resume_from: str | None = None
    """A checkpoint's directory."""
    stop: str | None = None
    """A file: once it is there, training ends at the next step's end and leaves a checkpoint."""
