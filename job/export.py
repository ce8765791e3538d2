"""The export child: merged model, GGUF files and their checks, from an adapter on scratch.

Run as ``python -m job.export plan.json`` after training, and with ``--check`` before it: then the base's first block and
an adapter drawn at random go through the same steps, and nothing is kept.
"""

import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Unsloth patches what the others define, so it comes first.
from unsloth import FastLanguageModel  # isort: skip

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from job.contract.config import Quantization
from job.contract.errors import BugError
from job.contract.events import Event, Exported, Exporting
from job.contract.plan import Plan
from job.gguf import Facts, check, check_lora, expect, gguf_name, lora_name, modelfile, tensor_count
from job.llama_cpp import CONVERTED, assert_one_release, convert, convert_lora, quantize
from job.one_layer import write_one_layer
from job.telling import Teller, run_child
from job.weights import complete_set, read_header, read_tensors

Tell = Callable[[Event], None]

_SAME_TYPE: dict[str, Quantization] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


def export(plan: Plan, teller: Teller) -> None:
    """Leaves in `plan.merged` and `plan.gguf` what the config asks for; a file has its name once it is checked.

    Raises:
        BugError: the adapter changes nothing.
        DataError: llama.cpp makes of the model something else than was trained, or nothing.
    """
    produce(plan, teller.tell)


def rehearse(plan: Plan, teller: Teller) -> None:
    """The export of the base's first block: what it raises, the export would raise after hours of training."""
    teller.tell(Exporting(what="the base's first block, to see that it can be done", step=1, of=1))
    asked = plan.recipe.export
    # One conversion tells as much as several: the first, or the one that is quantized from.
    gguf = tuple(filter(is_quantized, asked.gguf)) or asked.gguf[:1]
    recipe = plan.recipe.model_copy(update={"export": asked.model_copy(update={"gguf": gguf})})
    with tempfile.TemporaryDirectory(dir=plan.trainer) as directory:
        small = {name: f"{directory}/{name}" for name in ("base_model", "adapter", "merged", "gguf")}
        write_one_layer(Path(plan.base_model), Path(small["base_model"]))
        shutil.copytree(plan.tokenizer, small["base_model"], dirs_exist_ok=True)
        plan = plan.model_copy(update={**small, "recipe": recipe})
        draw_adapter(plan)
        produce(plan, lambda _: None)


def produce(plan: Plan, tell: Tell) -> None:
    """The export, top to bottom."""
    asked, merged = plan.recipe.export, Path(plan.merged)
    if asked.gguf or asked.lora_gguf:
        assert_one_release(Path(plan.llama_cpp))
        Path(plan.gguf).mkdir(parents=True)
    if asked.gguf or asked.merged:
        tell(Exporting(what="merged model", step=1, of=steps(plan)))
        facts = merge(plan, merged)
    if asked.merged:
        for file in sorted(merged.iterdir()):
            tell(Exported(kind="merged", file=file.name, size=file.stat().st_size, facts=facts))
    if asked.gguf:
        write_ggufs(plan, tell)
    if asked.lora_gguf:
        write_lora_gguf(plan, tell)
    if not asked.merged:
        shutil.rmtree(merged, ignore_errors=True)


def steps(plan: Plan) -> int:
    """How many steps the export has: the merge and each file."""
    return 1 + len(plan.recipe.export.gguf) + plan.recipe.export.lora_gguf


def write_ggufs(plan: Plan, tell: Tell) -> None:
    """Each quantization of the merged model, and a Modelfile for the first in the config."""
    name, asked = plan.recipe.name, plan.recipe.export.gguf
    merged, gguf, llama_cpp = Path(plan.merged), Path(plan.gguf), Path(plan.llama_cpp)
    expected = expect(merged, Path(plan.tokenizer), plan.stop_token_ids, Path(plan.train_rows))
    lossless = same_type(merged)
    with tempfile.TemporaryDirectory(dir=gguf) as directory:
        unchecked = Path(directory)
        source = (gguf if lossless in asked else unchecked) / gguf_name(name, lossless)
        for step, quantization in enumerate(sorted(asked, key=is_quantized), start=2):
            tell(Exporting(what=f"GGUF {quantization}", step=step, of=steps(plan)))
            out = unchecked / gguf_name(name, quantization)
            if is_quantized(quantization):
                if not source.exists():
                    convert(merged, source, lossless, name, llama_cpp)
                quantize(source, out, quantization)
            else:
                convert(merged, out, quantization, name, llama_cpp)
            tensors = tensor_count(source if source.exists() else out)
            publish(out, gguf, check(out, quantization, tensors, expected), tell)
    (gguf / "Modelfile").write_text(modelfile(gguf_name(name, asked[0]), stop_texts(plan)))


def is_quantized(quantization: Quantization) -> bool:
    """Whether it is made from a GGUF of 16 or 32 bits, which therefore comes first."""
    return quantization not in CONVERTED


def write_lora_gguf(plan: Plan, tell: Tell) -> None:
    """The adapter as GGUF, and a Modelfile that puts it onto the base's."""
    gguf, adapter = Path(plan.gguf), Path(plan.adapter)
    tell(Exporting(what="GGUF of the adapter", step=steps(plan), of=steps(plan)))
    with tempfile.TemporaryDirectory(dir=gguf) as directory:
        out = Path(directory) / lora_name(plan.recipe.name)
        convert_lora(adapter, Path(plan.base_model), out, "f16", Path(plan.llama_cpp))
        publish(out, gguf, check_lora(out, adapter), tell)
    (gguf / "Modelfile.lora").write_text(modelfile("base.gguf", stop_texts(plan), adapter=out.name))


def publish(checked: Path, directory: Path, facts: Facts, tell: Tell) -> None:
    """Gives a checked file its place."""
    file = checked.rename(directory / checked.name)
    tell(Exported(kind="gguf", file=file.name, size=file.stat().st_size, facts=facts))


def merge(plan: Plan, out: Path) -> Facts:
    """Writes the merged 16-bit model with the tokenizer that it was trained with, whole from the moment it is there.

    Raises:
        BugError: as `compare`.
    """
    written = out.with_name(f".{out.name}")
    model = load(plan.adapter, plan)
    model.generation_config.eos_token_id = list(plan.stop_token_ids)
    model.config.use_cache = True  # loading for training turned it off
    # Unsloth's default for `safe_serialization` is a pickle where there are only two processors; None means never.
    model.save_pretrained_merged(str(written), save_method="merged_16bit", safe_serialization=None)
    # The base's own tokenizer files: the loaded copy has lengths and padding that are not the base's.
    shutil.copytree(plan.tokenizer, written, dirs_exist_ok=True)
    facts = compare(Path(plan.base_model), written)
    written.rename(out)
    return facts


def load(directory: str, plan: Plan) -> Any:
    """A model or an adapter on its base, as training loads it."""
    model, _ = FastLanguageModel.from_pretrained(
        directory,
        max_seq_length=plan.recipe.max_seq_length,
        dtype=None if plan.recipe.dtype == "auto" else getattr(torch, plan.recipe.dtype),
        load_in_4bit=plan.recipe.load_in_4bit,
        use_exact_model_name=True,  # else a local path can be taken for a name on the hub
    )
    return model


def draw_adapter(plan: Plan) -> None:
    """Writes an adapter of the config's shape to `plan.adapter`, with numbers drawn at random for what starts at zero."""
    lora = plan.recipe.lora
    model = FastLanguageModel.get_peft_model(
        load(plan.base_model, plan),
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        bias=lora.bias,
        target_modules=list(lora.target_modules),
        use_rslora=lora.use_rslora,
        random_state=lora.random_state,
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    model.save_pretrained(plan.adapter)
    shutil.copytree(plan.tokenizer, plan.adapter, dirs_exist_ok=True)


def compare(base: Path, merged: Path) -> Facts:
    """How many tensors the merged model has and how many of them differ from the base's.

    Raises:
        BugError: none differs, or one holds what is not a number.
    """
    before, after = shards(base), shards(merged)
    changed = 0
    for name in before.keys() & after.keys():
        old, new = read_tensor(before[name], name), read_tensor(after[name], name)
        if not torch.isfinite(new).all():
            raise BugError(f"the merged model's {name} holds what is no number in {new.dtype}", "Take a bfloat16 base.")
        changed += not torch.equal(old.to(new.dtype), new)
    if not changed:
        raise BugError(
            f"the merged model is the base: none of its {len(after)} tensors changed",
            "The adapter's update is zero, or too small for 16 bits: train longer, or raise training.learning_rate.",
        )
    return {"tensors": len(after), "changed": changed}


def shards(directory: Path) -> dict[str, Path]:
    """The file of each tensor."""
    paths = [directory / shard for shard in complete_set(directory)]
    return {name: path for path in paths for name in read_header(path)}


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor of a safetensors file."""
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def same_type(model: Path) -> Quantization:
    """The GGUF type that holds a model's weights as they are: that of most of their bytes."""
    bytes_of: Counter[str] = Counter()
    for tensor in read_tensors(model).values():
        bytes_of[tensor.dtype] += tensor.size
    return _SAME_TYPE[bytes_of.most_common(1)[0][0]]


def stop_texts(plan: Plan) -> list[str]:
    """The tokens that end an answer, as text."""
    tokenizer = Tokenizer.from_file(f"{plan.tokenizer}/tokenizer.json")
    return [text for token in plan.stop_token_ids if (text := tokenizer.id_to_token(token))]


def main(argv: Sequence[str]) -> int:
    """The child's edge: `[--check] plan.json`."""
    return run_child(rehearse if argv[0] == "--check" else export, argv[-1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
