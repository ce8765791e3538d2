"""The export child: from an adapter on scratch to a merged model and GGUF files.

Run as ``python -m job.export plan.json``; with ``--check`` a one-layer model of the same config and tokenizer goes the
same way, before training begins. It reads local files only; what it made is told as events.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Unsloth patches what the others define, so it comes first.
from unsloth import FastLanguageModel, is_bfloat16_supported  # isort: skip

import tokenizers
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from job import gguf
from job.contract.config import Quantization
from job.contract.errors import BugError
from job.contract.events import Exported, Exporting
from job.contract.plan import Plan
from job.telling import Teller, run_child

_ROWS_COMPARED = 8


def export(plan: Plan, teller: Teller) -> None:
    """Merges, converts, quantizes and checks whatever the config asks for.

    Raises:
        DataError: the model cannot be converted.
        BugError: what was made is not the model that was trained.
    """
    wanted = plan.recipe.export
    steps = Steps(teller, of=1 + len(wanted.gguf) + wanted.lora_gguf)
    files = Path(plan.gguf)
    files.mkdir(parents=True, exist_ok=True)

    if wanted.gguf or wanted.merged:
        steps.next("merge")
        merged = Path(plan.merged).with_name(".merged")
        merge(plan, merged)
        changed = changed_tensors(Path(plan.base_model), merged)
        if not changed:
            raise BugError(
                "the merged model equals the base model: training changed nothing", "Raise the learning rate."
            )
        make_gguf(plan, merged, files, steps)
        if wanted.merged:
            merged.rename(plan.merged)
            size = sum(path.stat().st_size for path in Path(plan.merged).iterdir())
            teller.tell(Exported(kind="merged", file="merged", size=size, facts={"changed_tensors": changed}))
        else:
            shutil.rmtree(merged)

    lora = f"{plan.recipe.name}-lora.F16.gguf" if wanted.lora_gguf else None
    if lora:
        steps.next("convert the adapter")
        with unfinished(files / lora) as file:
            gguf.convert_lora(Path(plan.adapter), Path(plan.base_model), file, Path(plan.llama_cpp))
            facts = gguf.check_lora(file)
        teller.tell(Exported(kind="gguf", file=lora, size=(files / lora).stat().st_size, facts=facts))

    if wanted.gguf or lora:
        made = [gguf.file_name(plan.recipe.name, each) for each in wanted.gguf]
        tokenizer = tokenizers.Tokenizer.from_file(str(Path(plan.tokenizer) / "tokenizer.json"))
        stops = [str(tokenizer.id_to_token(token)) for token in plan.stop_token_ids]
        (files / "Modelfile").write_text(gguf.modelfile(made, lora, plan.recipe.base_model, stops))


class Steps:
    """Tells which step of the export begins."""

    def __init__(self, teller: Teller, of: int) -> None:
        self.teller, self._of, self._step = teller, of, 0

    def next(self, what: str) -> None:
        """The next step is `what`."""
        self._step += 1
        self.teller.tell(Exporting(what=what, step=self._step, of=self._of))


class unfinished:  # noqa: N801 (reads as a statement)
    """A file under a temporary name, which gets its own when the block ends well."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        return self._path.with_name(f".{self._path.name}")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._path.with_name(f".{self._path.name}").rename(self._path)


def merge(plan: Plan, directory: Path) -> None:
    """Joins the adapter into the 16-bit base, by Unsloth's merge, which reads the base's own safetensors."""
    model, tokenizer = FastLanguageModel.from_pretrained(
        plan.adapter,
        max_seq_length=plan.recipe.max_seq_length,
        dtype=dtype_of(plan),
        load_in_4bit=plan.recipe.load_in_4bit,
        use_exact_model_name=True,
    )
    model.save_pretrained_merged(str(directory), tokenizer, save_method="merged_16bit")
    del model
    # The tokenizer's own files and no other: loading and saving changes what it does not know.
    shutil.copytree(plan.tokenizer, directory, dirs_exist_ok=True)


def dtype_of(plan: Plan) -> torch.dtype:
    """The type that the base is loaded in, as in training."""
    if plan.recipe.dtype == "auto":
        return torch.bfloat16 if is_bfloat16_supported() else torch.float16
    named: torch.dtype = getattr(torch, plan.recipe.dtype)
    return named


def changed_tensors(base: Path, merged: Path) -> int:
    """How many tensors of a merged model differ from the base's."""
    before = _tensor_files(base)
    changed = 0
    for name, file in _tensor_files(merged).items():
        with safe_open(file, "pt") as new, safe_open(before.get(name, file), "pt") as old:
            tensor = new.get_tensor(name)
            changed += not torch.equal(tensor, old.get_tensor(name).to(tensor.dtype))
    return changed


def _tensor_files(directory: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            found |= dict.fromkeys(tensors.keys(), file)
    return found


def make_gguf(plan: Plan, merged: Path, files: Path, steps: Steps) -> None:
    """Writes each GGUF of the config, in its order; quantized ones come from one 16-bit file."""
    wanted = plan.recipe.export.gguf
    if not wanted:
        return
    expected = expected_of(plan, merged)
    sixteen: Quantization = "bf16" if _is_bfloat16(merged) else "f16"
    source = files / ".source.gguf"
    if any(each not in gguf.CONVERTED for each in wanted):
        gguf.convert(merged, source, sixteen, Path(plan.llama_cpp))
    for quantization in wanted:
        steps.next(f"GGUF {quantization}")
        name = gguf.file_name(plan.recipe.name, quantization)
        with unfinished(files / name) as file:
            if quantization in gguf.CONVERTED:
                gguf.convert(merged, file, quantization, Path(plan.llama_cpp))
            else:
                gguf.quantize(source, file, quantization)
            facts = gguf.check(file, quantization, expected)
        steps.teller.tell(Exported(kind="gguf", file=name, size=(files / name).stat().st_size, facts=facts))
    source.unlink(missing_ok=True)


def _is_bfloat16(model: Path) -> bool:
    name, file = next(iter(_tensor_files(model).items()))
    with safe_open(file, "pt") as tensors:
        return bool(tensors.get_tensor(name).dtype == torch.bfloat16)


def expected_of(plan: Plan, model: Path) -> gguf.Expected:
    """What every GGUF of the model must hold."""
    config = json.loads((model / "config.json").read_bytes())
    tokenizer = tokenizers.Tokenizer.from_file(str(Path(plan.tokenizer) / "tokenizer.json"))
    settings = json.loads((Path(plan.tokenizer) / "tokenizer_config.json").read_bytes())
    bos = settings.get("bos_token")
    rows = Dataset.from_file(plan.train_rows)[:_ROWS_COMPARED]["input_ids"]
    return gguf.Expected(
        block_count=config["num_hidden_layers"],
        stop_token_ids=plan.stop_token_ids,
        chat_template=(Path(plan.tokenizer) / "chat_template.jinja").read_text(),
        tokenizer=tokenizer,
        bos_token=bos["content"] if isinstance(bos, dict) else bos,
        texts=[tokenizer.decode(ids, skip_special_tokens=False) for ids in rows],
    )


def check(plan: Plan, teller: Teller) -> None:
    """Sends a one-layer model of the same config and tokenizer the whole way."""
    root = Path(plan.trainer) / "one-layer"
    config = AutoConfig.from_pretrained(plan.base_model)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    base = root / "base"
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype_of(plan))
    model.save_pretrained(base)
    for file in (*Path(plan.tokenizer).iterdir(), Path(plan.base_model) / "generation_config.json"):
        if file.exists():
            shutil.copy(file, base)
    lora = LoraConfig(r=4, target_modules=list(plan.recipe.lora.target_modules), init_lora_weights=False)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype_of(plan))
    get_peft_model(model, lora).save_pretrained(root / "adapter")
    shutil.copytree(plan.tokenizer, root / "adapter", dirs_exist_ok=True)
    places = {"base_model": base, "adapter": root / "adapter", "merged": root / "merged", "gguf": root / "gguf"}
    export(plan.model_copy(update={name: str(path) for name, path in places.items()}), teller)
    shutil.rmtree(root)


def main(argv: Sequence[str]) -> int:
    """`[--check] plan.json`; the exit code is of the table."""
    flags = [word for word in argv if word.startswith("--")]
    return run_child(check if flags == ["--check"] else export, [word for word in argv if word not in flags])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
