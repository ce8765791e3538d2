"""Checks a run's rows where it is launched, by the very code of the job, before a GPU is asked for."""

import tempfile
from pathlib import Path

from job.base_model import check_before_weights
from job.contract.documents import Spec
from job.contract.errors import PermissionDenied
from job.dataset.prepared import Prepared
from job.dataset.preparing import prepare
from job.dataset.tokenizer import load_tokenizer
from job.inputs import fetch_dataset, fetch_model_files, file_name, is_weights
from launcher.cluster import Cluster


def check_right(cluster: Cluster) -> None:
    """Raises `PermissionDenied` where this user may not launch."""
    if not cluster.may("create", "jobs", "batch"):
        raise PermissionDenied(
            f"you may not create jobs.batch in the namespace {cluster.namespace}", "Ask for the role finetune-launcher."
        )


def check_rows(spec: Spec) -> Prepared:
    """Reads, renders, tokenizes and masks every row as the job would, and keeps nothing.

    Args:
        spec: a frozen one. Of its base model all but the weights is fetched, and of its dataset everything.

    Raises:
        DataError, NoInputError, ConfigError: an input that cannot be used, with the reason.
    """
    recipe = spec.recipe
    files = spec.base_model.files
    with tempfile.TemporaryDirectory(prefix="finetune-validate-") as directory:
        light = [file for file in files if not is_weights(file)]
        base = fetch_model_files(light, Path(directory, "base"))[0].parent
        check_before_weights([file_name(file) for file in files], base)
        template = recipe.chat_template
        if spec.chat_template is not None:
            template = str(Path(directory, "template.jinja"))
            Path(template).write_text(spec.chat_template, "utf-8")
        tokenizer = load_tokenizer(base, template, recipe.chat_template_date)
        rows = fetch_dataset(spec, Path(directory, "dataset"))
        held_out = rows.eval or (recipe.dataset.eval if isinstance(recipe.dataset.eval, float) else None)
        return prepare(rows.train, held_out, recipe, tokenizer, None, gpus=spec.gpus, name_of=rows.name_of)
