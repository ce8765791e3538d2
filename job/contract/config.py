"""The user's config: every key of the YAML, its bounds and its default.

Hyperparameters keep upstream's exact names (Unsloth, PEFT, TRL). Defaults are those of the reference run,
``examples/llama-3.2-3b-finetome.yaml``.
"""

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from job.contract.model import Document

Quantization = Literal["f32", "f16", "bf16", "q8_0", "q4_k_m", "q5_k_m", "q6_k"]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=r"^[^\x00-\x1f\x7f]+$")]
Uris = Uri | Annotated[tuple[Uri, ...], Field(strict=False, min_length=1)]
Positive = Annotated[int, Field(ge=1)]


class Dataset(Document):
    """Where the rows are, what they look like, and what to do with those that do not fit."""

    train: Uris
    """A file, a list of files, a `prefix/`, a glob, or `hf://org/dataset[@revision][:split]`."""
    eval: Uris | Annotated[float, Field(gt=0, lt=1)] | None = None
    """The same as `train`, or a fraction of it; null: no evaluation."""
    format: Literal["auto", "sharegpt", "messages", "alpaca", "prompt_completion"] = "auto"
    """The rows' format; `auto` detects it and says what it found."""
    max_bad_rows: Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(pattern=r"^\d{1,2}(\.\d+)?%$")] = 0
    """How many unusable rows are left out before the run stops: a count, or a share such as `1%`."""
    on_too_long: Literal["error", "drop", "truncate"] = "drop"
    """What happens to a row of more than `max_seq_length` tokens."""
    max_row_bytes: Positive = 16_777_216
    """The largest row that is read, in bytes."""
    max_expansion: Positive = 200
    """How many times its own size a compressed file may expand to."""


class Lora(Document):
    """LoRA, as Unsloth's `get_peft_model` takes it."""

    r: Annotated[int, Field(ge=1, le=4096)] = 16
    """The rank."""
    lora_alpha: Annotated[float, Field(gt=0)] = 16
    """The scale: the update is multiplied by `lora_alpha / r` (by `lora_alpha / sqrt(r)` with `use_rslora`)."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0
    """Dropout on the adapter's input; Unsloth's fast path needs 0."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    target_modules: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    """The linear layers that get an adapter."""
    use_rslora: bool = False
    """Rank-stabilised scaling."""
    loftq_config: None = None
    """LoftQ initialisation. Only null: it needs a full-precision base, which a 4-bit run does not load."""
    use_gradient_checkpointing: Literal["unsloth"] | bool = "unsloth"
    """Recompute activations in the backward pass; `unsloth` also offloads them."""
    random_state: Annotated[int, Field(ge=0)] = 42
    """The seed of the adapter's initial weights."""


class Training(Document):
    """The training loop, as TRL's `SFTConfig` names it."""

    per_device_train_batch_size: Positive = 2
    """Rows in one forward pass on one GPU."""
    gradient_accumulation_steps: Positive = 4
    """Forward passes in one optimizer step."""
    max_steps: Positive | None = None
    """Optimizer steps. Exactly one of `max_steps` and `num_train_epochs` is set."""
    num_train_epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the dataset."""
    warmup_steps: Annotated[int, Field(ge=0)] = 5
    """Steps over which the learning rate rises from 0."""
    learning_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 2e-4
    """The peak learning rate."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
    ] = "linear"
    """How the learning rate falls."""
    optim: Literal["adamw_8bit", "adamw_torch", "adamw_torch_fused", "sgd", "adafactor"] = "adamw_8bit"
    """The optimizer. On a CPU Unsloth replaces `adamw_8bit` by `adamw_torch_fused`. Paged optimizers do not resume."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are clipped to this norm; 0: not clipped."""
    seed: Annotated[int, Field(ge=0)] = 42
    """The seed of the rows' order and of dropout."""
    packing: bool = False
    """Several rows in one sequence. Only on a GPU."""
    train_on_responses_only: bool = True
    """Loss on the assistant's turns only; false: on every token."""
    logging_steps: Positive = 1
    """Steps between two reports of the loss."""
    eval_steps: Positive | None = None
    """Steps between two evaluations; null: at the end only."""
    per_device_eval_batch_size: Positive = 1
    """Rows in one forward pass of an evaluation."""
    save_steps: Positive | None = None
    """Steps between two checkpoints; null: by `save_seconds` alone."""
    save_seconds: Annotated[float, Field(gt=0)] = 600
    """Seconds between two checkpoints."""
    report_to: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], Field(strict=False)] = ()
    """Trackers that follow the run; each is an extra of this package, its secret comes from the environment."""


class Samples(Document):
    """Prompts answered by the base before and by the tuned model after training."""

    prompts: Names = ()
    """One user turn each."""
    max_new_tokens: Positive = 128
    """The longest answer, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 1.5
    """Sampling temperature; 0: greedy."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Tokens less likely than this share of the likeliest are never drawn."""
    seed: Annotated[int, Field(ge=0)] = 42
    """The seed of the sampling."""


class Export(Document):
    """What is made of the adapter."""

    gguf: Annotated[tuple[Quantization, ...], Field(strict=False)] = ("f16",)
    """GGUF quantizations of the merged model."""
    lora_gguf: bool = False
    """The adapter alone as GGUF, for `llama-server --lora` or Ollama's `ADAPTER`."""
    merged: bool = False
    """The merged 16-bit model as safetensors."""

    @field_validator("gguf")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a quantization twice")
        return value


class Compute(Document):
    """What the run needs of the cluster. Changing it does not change the run."""

    gpus: Annotated[int, Field(ge=0, le=16)] = 1
    """GPUs of one node; 0: a CPU, which must be asked for by name."""
    gpu_memory_gib: Annotated[float, Field(gt=0)] = 15
    """Memory of one GPU, nominal."""
    cpus: Annotated[float, Field(gt=0)] = 4
    """CPU cores: as many threads as the export has, and as the training processes of all GPUs have together."""
    memory_gib: Annotated[float, Field(gt=0)] = 16
    """Main memory."""
    scratch_gib: Annotated[float, Field(gt=0)] = 50
    """Scratch disk."""
    max_hours: Annotated[float, Field(gt=0)] = 22
    """The run's deadline."""
    queue: str | None = None
    """A Kueue LocalQueue."""
    priority: str | None = None
    """A PriorityClass."""


class Recipe(Document):
    """The part of the config that decides the weights and the artifacts: all of it but `compute`."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=52)]
    """The model line: lower case letters, digits and dashes."""
    base_model: Uri
    """`s3://bucket/prefix/`, `hf://org/model[@revision]`, or a directory, holding 16-bit safetensors."""
    max_seq_length: Annotated[int, Field(ge=8, le=1_048_576)] = 2048
    """The longest row, in tokens."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """The type of the base's weights; `auto`: bfloat16 where the GPU has it, else float16."""
    load_in_4bit: bool = True
    """Load the base in 4 bits (QLoRA)."""
    chat_template: str | None = None
    """null: the tokenizer's own; the name of one of ours (`llama-3.1`, `chatml`, …); or a `.jinja` file."""
    chat_template_date: Annotated[date, Field(strict=False)] = date(2024, 7, 26)
    """The date that templates see which print today's."""
    dataset: Dataset
    lora: Lora = Lora()
    training: Training
    samples: Samples = Samples()
    export: Export = Export()

    @field_validator("chat_template_date", mode="before")
    @classmethod
    def _only_a_date(cls, value: Any) -> Any:
        if isinstance(value, (date, str)):
            return value
        raise ValueError("write a date as YYYY-MM-DD")


class RunConfig(Recipe):
    """The whole config, one YAML file."""

    schema_version: Literal[1] = 1
    """The version of this file's keys; only a future version will need to be said."""
    compute: Compute = Compute()

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> Self:
        if (self.training.max_steps is None) == (self.training.num_train_epochs is None):
            raise ValueError("training: set exactly one of max_steps and num_train_epochs")
        return self

    @model_validator(mode="after")
    def _cpu_says_so(self) -> Self:
        if self.compute.gpus == 0:
            wrong = [
                text
                for text, bad in (
                    ("dtype: float32", self.dtype != "float32"),
                    ("load_in_4bit: false", self.load_in_4bit),
                    ("training.packing: false", self.training.packing),
                )
                if bad
            ]
            if wrong:
                raise ValueError(f"compute.gpus is 0, a run on a CPU: it needs {', '.join(wrong)}")
        return self

    @property
    def recipe(self) -> Recipe:
        """The config without `compute`."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.model_fields})
