"""The adapter as it is published: its README.md, and no trace of the machine that made it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from job.base_model import BaseModel
from job.contract.config import Recipe
from job.contract.documents import FrozenModel, TrainSummary
from job.contract.errors import BugError, DataError
from job.weights import read_header

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CARD = "README.md"

_HUB = re.compile(r"^hf://(?P<id>[^/@:]+/[^/@:]+)(?:@(?P<revision>[^/:]+))?")
_TEMPLATES = Environment(loader=PackageLoader("job"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def write_model_card(
    directory: Path,
    *,
    run_id: str,
    recipe: Recipe,
    base: BaseModel,
    summary: TrainSummary,
    versions: Mapping[str, str],
) -> None:
    """Write README.md into an adapter's directory, in place of the one that peft left there.

    Its front matter is what the Hugging Face hub reads, so it names a base model and datasets only where they are on a
    hub; the text names them wherever they are.
    """
    hub = _HUB.match(recipe.base_model)
    text = _TEMPLATES.get_template("model_card.md.jinja").render(
        front_matter=yaml.safe_dump(_front_matter(recipe, base), sort_keys=False, allow_unicode=True),
        run_id=run_id,
        recipe=recipe,
        train=_listed(recipe.dataset.train),
        base=base,
        licence=" ".join(filter(None, (base.licence, base.licence_name))) or "not stated by the base model",
        hub_id=hub and hub["id"],
        summary=summary,
        versions=versions,
        config=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
    )
    (directory / CARD).write_text(f"{text}\n", "utf-8")


def clean_adapter(directory: Path, base: FrozenModel, scratch: Path) -> None:
    """Make an adapter's directory fit to publish, and see that it is whole. Its model card is written before.

    adapter_config.json names the base by its local path, which is of no use elsewhere: it gets the config's URI, or
    the hub's own id and commit.

    Args:
        directory: the copy that is published; the export still needs the local path in the other one.
        base: the base model as the spec names it.
        scratch: the run's directory on scratch, which no file may mention.

    Raises:
        BugError: the weights are not whole, or a file mentions scratch.
    """
    path = directory / ADAPTER_CONFIG
    config = json.loads(path.read_bytes())
    hub = _HUB.match(base.uri)
    config |= {"base_model_name_or_path": hub["id"] if hub else base.uri, "revision": base.commit}
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
    try:
        tensors = read_header(directory / ADAPTER_WEIGHTS)
    except (DataError, FileNotFoundError) as error:
        raise BugError(f"the adapter that training left is not whole: {error}") from error
    if not any(".lora_B." in name for name in tensors):
        raise BugError("the adapter that training left has no LoRA weights")
    for file in sorted(directory.rglob("*")):
        if file.is_file() and file.name != ADAPTER_WEIGHTS and str(scratch).encode() in file.read_bytes():
            raise BugError(f"the adapter's {file.name} mentions {scratch}, a path of this machine alone")


def localize_adapter(directory: Path, base: Path) -> None:
    """Undoes what `clean_adapter` did to a published adapter: the export needs the base's local path."""
    path = directory / ADAPTER_CONFIG
    config = json.loads(path.read_bytes()) | {"base_model_name_or_path": str(base), "revision": None}
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")


def _front_matter(recipe: Recipe, base: BaseModel) -> dict[str, object]:
    hub = _HUB.match(recipe.base_model)
    datasets = [found["id"] for uri in _listed(recipe.dataset.train) if (found := _HUB.match(uri))]
    facts: dict[str, object] = {
        "base_model": hub and hub["id"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "license": base.licence,
        "license_name": base.licence_name,
        "datasets": datasets,
        "tags": ["lora", "unsloth", "trl", "sft"],
    }
    return {key: value for key, value in facts.items() if value}


def _listed(uris: str | tuple[str, ...]) -> tuple[str, ...]:
    return (uris,) if isinstance(uris, str) else uris
