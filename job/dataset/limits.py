"""How much of a dataset may be left out, and what must be left of it."""

from collections import Counter
from collections.abc import Iterator

from job.contract.config import Recipe
from job.contract.errors import BugError, DataError
from job.dataset.prepared import Prepared
from job.dataset.rejects import Rejects
from job.dataset.split import Split

_DUPLICATES_WARNED = 0.01  # of the rows


def _allowed(max_bad_rows: int | str, read: int) -> float:
    """How many bad rows may be left out of so many."""
    if isinstance(max_bad_rows, str):
        return float(max_bad_rows.rstrip("%")) / 100 * read
    return max_bad_rows


def check(train: Split, eval: Split | None, recipe: Recipe, rejects: Rejects, gpus: int) -> None:
    """Whether what was left out is few enough, and what is left enough.

    Raises:
        DataError: it is not; says how many of what, and where the first few are.
        BugError: a row is neither kept nor told of.
    """
    dataset, splits = recipe.dataset, [split for split in (train, eval) if split]
    read = sum(split.counts["read"] for split in splits)
    bad = sum((split.bad for split in splits), Counter[str]())
    if bad.total() > _allowed(dataset.max_bad_rows, read):
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
        raise DataError(
            f"{bad.total()} of {read} rows are bad, dataset.max_bad_rows is {dataset.max_bad_rows}: {reasons}\n{_first(rejects)}",
            "Mend them, or raise dataset.max_bad_rows to leave them out.",
        )
    told = sum(split.counts["rows"] + split.counts["dropped"] for split in splits) + bad.total()
    if told != read:
        raise BugError(f"of {read} rows read {told} are accounted for")
    for name, split in (("train", train), ("eval", eval)):
        if split:
            _check_dropped(name, split, recipe, rejects)
    training = recipe.training
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * max(gpus, 1)
    if train.counts["rows"] < batch:
        raise DataError(
            f"{train.counts['rows']} rows to train on are less than one batch of {batch}: per_device_train_batch_size "
            f"{training.per_device_train_batch_size} x gradient_accumulation_steps {training.gradient_accumulation_steps} "
            f"x {max(gpus, 1)} device(s)",
            "Give more rows, or lower training.gradient_accumulation_steps.",
        )


def _check_dropped(name: str, split: Split, recipe: Recipe, rejects: Rejects) -> None:
    """Whether most of a split's good rows are still there."""
    counts, length = split.counts, recipe.max_seq_length
    good = counts["rows"] + counts["dropped"]
    lost = (
        f"{counts['too_long']} of {good} {name} rows have more than max_seq_length {length} tokens, cut there "
        f"{counts['answers_lost']} would lose their whole answer; {counts['nothing_to_train']} have nothing to train on"
    )
    advice = "Raise max_seq_length, or shorten these rows."
    if counts["too_long"] and recipe.dataset.on_too_long == "error":
        raise DataError(f"dataset.on_too_long is error: {lost}\n{_first(rejects)}", advice)
    if 2 * counts["dropped"] > good:
        raise DataError(f"over half of the rows would be left out: {lost}\n{_first(rejects)}", advice)
    if not counts["rows"]:
        raise DataError(f"the {name} split has no rows", "Give it more rows, or a larger share.")


def _first(rejects: Rejects) -> str:
    return "\n".join(f"  {reject}" for reject in rejects.shown)


def warnings(prepared: Prepared) -> Iterator[str]:
    """What a person should look at before trusting the run, a sentence each."""
    for name, split in (("train", prepared.train), ("eval", prepared.eval)):
        if split is None:
            continue
        if len(split.formats) > 1:
            counts = ", ".join(f"{count} {format}" for format, count in sorted(split.formats.items()))
            yield f"{name} rows are of several formats: {counts}"
        if split.bad:
            yield f"{sum(split.bad.values())} bad {name} rows are left out"
        if split.too_long:
            fate = f"{split.truncated} are cut" if split.truncated else "they are left out"
            yield (
                f"{split.too_long} {name} rows are too long: {fate}; "
                f"{split.answers_lost / split.too_long:.0%} of them would lose their whole answer if cut"
            )
        if split.nothing_to_train:
            yield f"{split.nothing_to_train} {name} rows have nothing to train on and are left out"
        if split.duplicates > _DUPLICATES_WARNED * split.rows:
            yield f"{split.duplicates} of {split.rows} {name} rows are duplicates"
    if prepared.overlap and prepared.eval:
        yield f"{prepared.overlap} of {prepared.eval.rows} eval rows are in train, too: the eval loss will look better than it is"
