"""The download stage: inputs onto scratch, checked, prepared once, and the plan that the children work from."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import structlog

from job.base_model import BaseModel, inspect
from job.contract.documents import Spec
from job.contract.errors import ConfigError
from job.contract.model import canonical_bytes
from job.contract.plan import Plan
from job.dataset.prepared import EVAL_ROWS, REJECTS, TRAIN_ROWS, Prepared
from job.dataset.preparing import prepare
from job.dataset.tokenizer import Tokenizer, load_tokenizer, messages_of
from job.inputs import fetch_base_model, fetch_dataset
from job.moving import Moving
from job.run import Run
from job.scratch import Scratch

log = structlog.get_logger()

TEMPLATE_FILE = "chat_template.jinja"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Inputs:
    """A run's inputs, checked and ready."""

    base: BaseModel
    tokenizer: Tokenizer
    rows: Prepared


def prepare_inputs(spec: Spec, scratch: Scratch) -> Inputs:
    """Fetches and checks what the run is made from, and prepares its rows.

    Raises:
        NoInputError, DataError, ConfigError: an input that cannot be used, with the reason.
    """
    recipe = spec.recipe
    base_size = sum(file.size for file in spec.base_model.files)
    base = inspect(fetch_base_model(spec, scratch.base_model, Moving("base", base_size)), recipe)
    log.info("base model", architecture=base.architecture, parameters=base.parameters, licence=base.licence)
    if base.ignored:
        log.warning("pickled weights are ignored", files=base.ignored)
    template = recipe.chat_template
    if spec.chat_template is not None:  # the text that was frozen, whatever the file holds by now
        template = str(scratch.rows / "template.jinja")
        Path(template).write_text(spec.chat_template, "utf-8")
    tokenizer = load_tokenizer(base.directory, template, recipe.chat_template_date)
    write_tokenizer(base.directory, tokenizer, scratch.tokenizer)
    objects = spec.dataset.train + spec.dataset.eval
    files = fetch_dataset(spec, scratch.dataset, Moving("dataset", sum(file.size for file in objects)))
    try:
        rows = prepare(
            files.train,
            files.eval or (recipe.dataset.eval if isinstance(recipe.dataset.eval, float) else None),
            recipe,
            tokenizer,
            scratch.rows,
            gpus=spec.gpus,
            name_of=files.name_of,
        )
    finally:
        if (scratch.rows / REJECTS).exists():
            shutil.copyfile(scratch.rows / REJECTS, scratch.report / REJECTS)
    tell(rows)
    return Inputs(base, tokenizer, rows)


def tell(rows: Prepared) -> None:
    """What a person should see of the rows before anything is trained on them."""
    for name, split in (("train", rows.train), ("eval", rows.eval)):
        if split:
            log.info("rows", split=name, **split.model_dump(exclude={"lengths"}))
    for warning in rows.warnings:
        log.warning(warning)
    log.info("shown row", spans=[(span.text, "trained on" if span.trained else "masked") for span in rows.shown])


def write_tokenizer(base: Path, tokenizer: Tokenizer, directory: Path) -> None:
    """The base's tokenizer files with the chat template that the rows were rendered by, and no other."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, directory / name)
    config = json.loads((directory / "tokenizer_config.json").read_bytes())
    config.pop("chat_template", None)
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False), "utf-8")
    (directory / TEMPLATE_FILE).write_text(tokenizer.chat_template, "utf-8")


def write_plan(run: Run, inputs: Inputs, scratch: Scratch, llama_cpp: Path, resume_from: Path | None = None) -> Plan:
    """The plan, on scratch."""
    plan = Plan(
        run_id=run.run_id,
        recipe=run.spec.recipe,
        gpus=run.spec.gpus,
        base_model=str(inputs.base.directory),
        tokenizer=str(scratch.tokenizer),
        stop_token_ids=inputs.tokenizer.stop_token_ids,
        sample_ids=_sample_ids(run.spec, inputs.tokenizer),
        train_rows=str(scratch.rows / TRAIN_ROWS),
        eval_rows=str(scratch.rows / EVAL_ROWS) if inputs.rows.eval else None,
        checkpoints=str(scratch.checkpoints),
        adapter=str(scratch.adapter),
        merged=str(scratch.merged),
        gguf=str(scratch.gguf),
        report=str(scratch.report),
        trainer=str(scratch.trainer),
        llama_cpp=str(llama_cpp),
        events=str(scratch.events),
        resume_from=str(resume_from) if resume_from else None,
        stop=str(scratch.stop),
    )
    scratch.plan.write_bytes(canonical_bytes(plan))
    return plan


def _sample_ids(spec: Spec, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """`samples.prompts` as token ids.

    Raises:
        ConfigError: for a prompt that leaves no room for its answer.
    """
    samples, longest = spec.recipe.samples, spec.recipe.max_seq_length
    rendered = [tokenizer.render(messages_of(prompt), add_generation_prompt=True) for prompt in samples.prompts]
    ids = [tuple(tokenizer.encode(text)) for text in rendered]
    for number, prompt in enumerate(ids):
        if len(prompt) + samples.max_new_tokens > longest:
            raise ConfigError(
                f"samples.prompts.{number} has {len(prompt)} tokens, and samples.max_new_tokens {samples.max_new_tokens} "
                f"more go beyond max_seq_length {longest}",
                "Shorten the prompt, or lower samples.max_new_tokens.",
            )
    return tuple(ids)
