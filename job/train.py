"""The training child: an Unsloth LoRA finetune, from plan.json to an adapter on scratch.

Run as ``python -m job.train plan.json``, or the same under torchrun, one process for each GPU. It reads local files
only; what it finds is told as events. A GPU and a CPU run by the same lines: what differs is data.
"""

import json
import math
import os
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

# Unsloth patches what the others define, so it comes first.
from unsloth import FastLanguageModel, is_bfloat16_supported  # isort: skip

import bitsandbytes
import torch
import torch.distributed
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft.tuners.lora import LoraLayer
from transformers import TextStreamer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from job.contract.config import Recipe
from job.contract.documents import TrainSummary
from job.contract.errors import BugError, InterruptedRun
from job.contract.events import Alive, Evaluated, Loaded, Sample, SampleText, Saved, Step, Trained, Training, Versions
from job.contract.plan import Plan
from job.stack import stack_versions
from job.telling import Teller, run_child

_CHECKPOINTS_KEPT = 2  # of those that nobody has taken: the newest, and one before it
_MEASURED = "measured.json"
_PULSE_SECONDS = 1


def train(plan: Plan, teller: Teller) -> None:
    """The reference run, top to bottom.

    Raises:
        BugError: a loss that is not a number, rows that the trainer changed, a base that is not 4-bit as asked,
            ranks that do not train together.
        InterruptedRun: it was asked to stop, and has left a checkpoint.
        torch.OutOfMemoryError: the GPU's memory does not hold the config.
    """
    recipe, lora, training = plan.recipe, plan.recipe.lora, plan.recipe.training
    teller.tell(Versions(versions=stack_versions()))
    dtype = weights_dtype(recipe)

    model, tokenizer = FastLanguageModel.from_pretrained(
        plan.base_model,
        max_seq_length=recipe.max_seq_length,
        dtype=dtype,
        load_in_4bit=recipe.load_in_4bit,
        use_gradient_checkpointing=lora.use_gradient_checkpointing,
        use_exact_model_name=True,  # else a local path can be taken for a name on the hub
    )
    tokenizer.chat_template = (Path(plan.tokenizer) / "chat_template.jinja").read_text()
    model.generation_config.eos_token_id = list(plan.stop_token_ids)
    model = FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        loftq_config=lora.loftq_config,
        use_gradient_checkpointing=lora.use_gradient_checkpointing,
        random_state=lora.random_state,
    )
    loaded = describe(model, plan, dtype)
    teller.tell(loaded)

    answer_samples(model, tokenizer, plan, "base", teller)

    rows = Dataset.from_file(plan.train_rows)
    eval_rows = Dataset.from_file(plan.eval_rows) if plan.eval_rows else None
    trainer = CountingTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=eval_rows,
        args=SFTConfig(
            output_dir=plan.trainer,
            max_length=recipe.max_seq_length,
            per_device_train_batch_size=training.per_device_train_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            max_steps=training.max_steps or -1,
            num_train_epochs=training.num_train_epochs or 1,
            warmup_steps=training.warmup_steps,
            learning_rate=training.learning_rate,
            lr_scheduler_type=training.lr_scheduler_type,
            optim=training.optim,
            weight_decay=training.weight_decay,
            max_grad_norm=training.max_grad_norm,
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            packing=training.packing,
            logging_steps=training.logging_steps,
            logging_nan_inf_filter=False,  # it hides a loss that is not a number
            eval_strategy="steps" if eval_rows and training.eval_steps else "no",
            eval_steps=training.eval_steps,
            per_device_eval_batch_size=training.per_device_eval_batch_size,
            prediction_loss_only=True,  # kept logits are what runs an evaluation out of memory
            save_strategy="no",  # Checkpoints decides
            seed=training.seed,
            data_seed=training.seed,
            report_to=list(training.report_to) or "none",
            disable_tqdm=True,
        ),
    )
    if (together := trainer.accelerator.num_processes) != max(1, plan.gpus):  # each would train, and write, alone
        raise BugError(f"{together} processes train together, and compute.gpus is {plan.gpus}")
    assert_same_rows(rows, trainer.train_dataset, training.packing)
    if eval_rows:
        assert_same_rows(eval_rows, trainer.eval_dataset, training.packing)
        trainer.evaluate(longest(eval_rows, training.per_device_eval_batch_size))  # fails now rather than at the end
    progress = Progress(trainer, plan, teller)
    trainer.add_callback(progress)
    trainer.add_callback(Pulse(teller))
    checkpoints = Checkpoints(trainer, progress, plan, teller)
    trainer.add_callback(checkpoints)

    trainer.train(resume_from_checkpoint=plan.resume_from)

    if checkpoints.stopped:
        trainer.accelerator.wait_for_everyone()  # a rank that ends takes the others with it
        raise InterruptedRun(
            f"training was stopped after step {trainer.state.global_step} of {trainer.state.max_steps}"
        )
    if trainer.is_world_process_zero():
        save_adapter(model, plan)
    measured = progress.measured()
    teller.tell(
        Trained(
            summary=TrainSummary(
                steps=trainer.state.global_step,
                train_loss=last_tenth([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]),
                eval_loss=None,  # the adapter goes up first
                tokens_seen=measured["tokens_seen"],
                tokens_trained=measured["tokens_trained"],
                trainable_parameters=loaded.trainable_parameters,
                total_parameters=loaded.total_parameters,
                effective_batch=loaded.effective_batch,
                seconds=measured["seconds"],
                device=loaded.device,
                dtype=loaded.dtype,
                peak_memory_bytes=memory_bytes(),
                memory_after_load_bytes=loaded.memory_bytes,
            )
        )
    )
    if eval_rows:
        trainer.evaluate()
    answer_samples(model, tokenizer, plan, "tuned", teller)


def weights_dtype(recipe: Recipe) -> torch.dtype:
    """The type of the base's weights; `auto` is bfloat16 where the GPU has it, else float16."""
    if recipe.dtype == "auto":
        return torch.bfloat16 if is_bfloat16_supported() else torch.float16
    named: torch.dtype = getattr(torch, recipe.dtype)
    return named


def describe(model: Any, plan: Plan, dtype: torch.dtype) -> Loaded:
    """What was loaded; a base that should be 4-bit and is not ends the run.

    When bitsandbytes' library does not load, Unsloth prints one line and loads 16 bits.
    """
    bases = [module.base_layer for module in model.modules() if isinstance(module, LoraLayer)]
    linear_4bit = sum(isinstance(base, bitsandbytes.nn.Linear4bit) for base in bases)
    if plan.recipe.load_in_4bit and linear_4bit < len(bases):
        raise BugError(
            f"load_in_4bit is set, but only {linear_4bit} of {len(bases)} projections are 4-bit",
            "bitsandbytes did not load its library for this GPU: the log says why.",
        )
    training = plan.recipe.training
    return Loaded(
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        total_parameters=model.num_parameters(),
        dtype=str(dtype).removeprefix("torch."),
        linear_4bit=linear_4bit,
        device=torch.cuda.get_device_name() if plan.gpus else "cpu",
        memory_bytes=memory_bytes(),
        effective_batch=training.per_device_train_batch_size * training.gradient_accumulation_steps * max(1, plan.gpus),
    )


def memory_bytes() -> int:
    """Device memory reserved at most so far; on a CPU the process's peak resident set."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def assert_same_rows(ours: Dataset, trainers: Dataset, packed: bool) -> None:
    """The trainer's ids and labels are ours, row by row.

    Nothing between the dataset and the loss may tokenize, truncate, drop or mask again. Packed rows are joined by
    the trainer, so there all tokens are compared with their labels, in whatever order.
    """
    if packed:
        same = _tokens(ours) == _tokens(trainers)
    else:
        same = len(ours) == len(trainers) and all(
            mine == theirs for mine, theirs in zip(_batches(ours), _batches(trainers), strict=True)
        )
    if not same:
        raise BugError(f"the trainer changed the rows: {len(ours)} were prepared, {len(trainers)} differ from them")


def _tokens(rows: Dataset) -> Counter[tuple[int, int]]:
    return Counter(
        pair
        for ids, labels in _batches(rows)
        for row, marks in zip(ids, labels, strict=True)
        for pair in zip(row, marks, strict=True)
    )


def _batches(rows: Dataset, size: int = 1000) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        yield batch["input_ids"], batch["labels"]


def longest(rows: Dataset, count: int) -> Dataset:
    """The `count` longest rows: the ones that need the most memory."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    return rows.select(sorted(range(len(rows)), key=lengths.__getitem__)[-count:])


def last_tenth(losses: list[float]) -> float:
    """The mean of the last tenth of the logged losses, at least one: what the model has come to."""
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


class EvaluationStopped(Exception):
    """There is no time left for an evaluation."""


class CountingTrainer(SFTTrainer):  # type: ignore[misc]
    """Counts the tokens that go through the model, and those that the loss is taken on; its evaluations can be stopped.

    TRL's own count leaves out the padding-free path, and knows nothing of labels.
    """

    tokens_here = 0

    def training_step(self, model: Any, inputs: dict[str, torch.Tensor], *rest: Any, **named: Any) -> torch.Tensor:
        mask = inputs.get("attention_mask")
        seen = inputs["input_ids"].numel() if mask is None else mask.sum()
        trained = (inputs["labels"] != -100).sum()
        # Kept on the device: reading it here would wait for the GPU in every micro batch.
        self._counts = getattr(self, "_counts", 0) + torch.stack(
            [torch.as_tensor(seen, device=trained.device), trained]
        )
        loss: torch.Tensor = super().training_step(model, inputs, *rest, **named)
        return loss

    def evaluate(self, *given: Any, **named: Any) -> dict[str, float]:
        """The metrics; none of an evaluation that was stopped."""
        try:
            metrics: dict[str, float] = super().evaluate(*given, **named)
        except EvaluationStopped:
            return {}
        return metrics

    def counted_tokens(self) -> tuple[int, int]:
        """Tokens seen and trained on since the loop began, over all GPUs."""
        seen, trained = self.accelerator.reduce(self._counts, "sum").tolist()
        return int(seen), int(trained)


class Progress(TrainerCallback):  # type: ignore[misc]
    """Tells each logged step, and measures; a loss that is not a number ends the run."""

    def __init__(self, trainer: CountingTrainer, plan: Plan, teller: Teller) -> None:
        self._trainer, self._teller = trainer, teller
        self._seconds = 0.0
        self._before = {"tokens_seen": 0, "tokens_trained": 0, "seconds": 0.0}
        if plan.resume_from:
            self._before = json.loads(Path(plan.resume_from, _MEASURED).read_bytes())

    def measured(self) -> dict[str, Any]:
        """Tokens and seconds since step 0, also those before the checkpoint that training went on from."""
        seen, trained = self._trainer.counted_tokens()
        here = {"tokens_seen": seen, "tokens_trained": trained, "seconds": self._seconds}
        return {name: self._before[name] + value for name, value in here.items()}

    def on_train_begin(self, args: SFTConfig, state: Any, control: Any, **_: Any) -> None:
        self._began, self._first = time.monotonic(), state.global_step
        self._teller.tell(Training(step=state.global_step, of=state.max_steps))

    def on_step_end(self, args: SFTConfig, state: Any, control: Any, **_: Any) -> None:
        self._seconds = time.monotonic() - self._began
        if state.global_step >= state.max_steps:
            control.should_log = True  # whatever logging_steps says, the end is told

    def on_log(self, args: SFTConfig, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise BugError(
                f"the loss is {logs['loss']} at step {state.global_step}",
                "Lower training.learning_rate, or look for damaged rows; the last checkpoint is kept.",
            )
        steps = state.global_step - self._first
        self._teller.tell(
            Step(
                step=state.global_step,
                of=state.max_steps,
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                grad_norm=logs.get("grad_norm"),
                tokens_per_second=self._trainer.counted_tokens()[0] / self._seconds,
                eta_seconds=self._seconds / steps * (state.max_steps - state.global_step),
            )
        )

    def on_evaluate(self, args: SFTConfig, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        if not math.isfinite(metrics["eval_loss"]):
            raise BugError(f"the eval loss is {metrics['eval_loss']} at step {state.global_step}")
        if state.global_step:
            self._teller.tell(Evaluated(step=state.global_step, loss=metrics["eval_loss"]))

    def on_train_end(self, args: SFTConfig, state: Any, control: Any, **_: Any) -> None:
        self._seconds = time.monotonic() - self._began


class Pulse(TrainerCallback):  # type: ignore[misc]
    """Tells that it goes on: between two logged steps, and within an evaluation, there may be hours."""

    def __init__(self, teller: Teller) -> None:
        self._teller, self._told = teller, 0.0

    def on_substep_end(self, args: SFTConfig, state: Any, control: Any, **_: Any) -> None:
        self._tell()

    def on_step_end(self, args: SFTConfig, state: Any, control: Any, **_: Any) -> None:
        self._tell()

    def on_prediction_step(self, args: SFTConfig, state: Any, control: Any, **_: Any) -> None:
        self._tell()

    def _tell(self) -> None:
        if (now := time.monotonic()) - self._told >= _PULSE_SECONDS:
            self._told = now
            self._teller.tell(Alive())


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """A checkpoint every `save_steps` or `save_seconds`, and when asked to stop; whole once its name is there."""

    def __init__(self, trainer: CountingTrainer, progress: Progress, plan: Plan, teller: Teller) -> None:
        self._trainer, self._progress, self._teller = trainer, progress, teller
        self._training, self._directory = plan.recipe.training, Path(plan.checkpoints)
        self._stop = Path(plan.stop) if plan.stop else None
        self._saved = time.monotonic()
        self.stopped = False

    def on_step_end(self, args: SFTConfig, state: Any, control: Any, **_: Any) -> None:
        every = self._training.save_steps
        due = (
            bool(every and state.global_step % every == 0)
            or time.monotonic() - self._saved >= self._training.save_seconds
        )
        due, asked = self._agreed(due, self._asked)
        if due and state.global_step < state.max_steps:  # else the adapter comes next
            control.should_save = True
        if asked:  # an evaluation that is due is begun all the same: it draws from the random state that is kept
            self._end_training(state, control)

    def on_prediction_step(self, args: SFTConfig, state: Any, control: Any, **_: Any) -> None:
        [asked] = self._agreed(self._asked)
        if asked:
            control.should_evaluate = False  # else it is begun again at once
            self._end_training(state, control)
            raise EvaluationStopped

    def _end_training(self, state: Any, control: Any) -> None:
        """Lets training end with a checkpoint, unless its last step is taken: then the adapter comes next."""
        if state.global_step < state.max_steps:
            self.stopped = control.should_save = control.should_training_stop = True

    @property
    def _asked(self) -> bool:
        """Whether this process has been asked to stop."""
        return bool(self._stop and self._stop.exists())

    def _agreed(self, *decided: bool) -> list[bool]:
        """What the first rank decides for all."""
        agreed = list(decided)
        broadcast_object_list(agreed)
        return agreed

    def on_save(self, args: SFTConfig, state: Any, control: Any, **_: Any) -> None:
        self._trainer.accelerator.wait_for_everyone()  # each rank has written its random state
        self._saved = time.monotonic()
        measured = self._progress.measured()
        if not state.is_world_process_zero:
            return
        written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        final = self._directory / f"step-{state.global_step:06d}"
        (written / _MEASURED).write_text(json.dumps(measured))
        (written / "training_args.bin").unlink()  # a pickle that nobody reads
        sync(written)
        shutil.rmtree(final, ignore_errors=True)
        written.rename(final)
        sync(self._directory)
        for old in sorted(self._directory.glob("step-*"))[:-_CHECKPOINTS_KEPT]:
            with suppress(FileNotFoundError):  # the supervisor has just taken it
                shutil.rmtree(old.rename(Path(args.output_dir) / old.name))
        self._teller.tell(Saved(step=state.global_step, directory=str(final)))


def sync(directory: Path) -> None:
    """Forces a directory's files and their names to the disk, so that a rename after it never shows half of them."""
    for path in (*directory.rglob("*"), directory):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_adapter(model: Any, plan: Plan) -> None:
    """The adapter and the tokenizer that it was trained with, whole from the moment the directory is there."""
    if not all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad):
        raise BugError("the adapter holds weights that are not numbers", "Lower training.learning_rate.")
    final = Path(plan.adapter)
    written = final.with_name(f".{final.name}")
    model.save_pretrained(written)
    # The base's own tokenizer files, not the trainer's copy: loading sets lengths and padding that are not the base's.
    shutil.copytree(plan.tokenizer, written, dirs_exist_ok=True)
    sync(written)
    written.rename(final)


class Streamed(TextStreamer):  # type: ignore[misc]
    """Tells an answer as it grows."""

    def __init__(self, tokenizer: Any, model: str, prompt: int, teller: Teller) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._about: dict[str, Any] = {"model": model, "prompt": prompt}
        self._teller = teller

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._teller.tell(SampleText(**self._about, text=text))


def answer_samples(model: Any, tokenizer: Any, plan: Plan, which: Any, teller: Teller) -> None:
    """Answers `samples.prompts`. A sample that fails is told, and never ends the run."""
    if not plan.sample_ids:
        return
    FastLanguageModel.for_inference(model)
    # Sampling draws from a random state of its own: training must not depend on how many samples were asked for.
    with torch.random.fork_rng():
        for number, (prompt, ids) in enumerate(zip(plan.recipe.samples.prompts, plan.sample_ids, strict=True)):
            text, error = "", None
            try:
                torch.manual_seed(plan.recipe.samples.seed + number)
                text = answer(model, tokenizer, list(ids), plan, Streamed(tokenizer, which, number, teller))
            except Exception as failure:
                error = f"{type(failure).__name__}: {failure}"
            teller.tell(Sample(model=which, prompt=prompt, answer=text, error=error))
    FastLanguageModel.for_training(model)


def answer(model: Any, tokenizer: Any, ids: list[int], plan: Plan, streamer: TextStreamer) -> str:
    """The model's answer to one tokenized prompt, drawn as `samples` says."""
    samples = plan.recipe.samples
    prompt = torch.tensor([ids], device=model.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if samples.temperature > 0:
        sampling = {"do_sample": True, "temperature": samples.temperature, "min_p": samples.min_p}
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=samples.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        streamer=streamer,
        **sampling,
    )
    text: str = tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)
    return text


if __name__ == "__main__":
    sys.exit(run_child(train, sys.argv[1:]))
