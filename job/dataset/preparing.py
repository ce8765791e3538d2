"""A dataset's files to the rows that the trainer takes, once: read, converted, checked, rendered, tokenized, masked."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from job.contract.config import Recipe
from job.contract.errors import DataError, LocalIOError
from job.dataset.chats import to_chat
from job.dataset.masking import NOT_TRAINED, Encoded, Rendered, encode, render_chat
from job.dataset.prepared import Prepared, Span
from job.dataset.rejects import BadRow, DropReason, Reject, Rejects, excerpt_of, open_rejects
from job.dataset.rows import read_rows
from job.dataset.split import Split
from job.dataset.tokenizer import Tokenizer

Progress = Callable[[int], None]
"""Called with the number of rows read since the last call."""
NameOf = Callable[[Path], str]
"""What the user calls a file."""

_BATCH_ROWS, _BATCH_CHARACTERS = 512, 1 << 20  # an encoding takes about a hundred bytes a token
_DUPLICATES_WARNED = 0.01  # of the rows


def prepare(
    train: Sequence[Path],
    eval: Sequence[Path] | float | None,
    recipe: Recipe,
    tokenizer: Tokenizer,
    directory: Path | None,
    *,
    gpus: int = 1,
    name_of: NameOf = str,
    progress: Progress = lambda _: None,
) -> Prepared:
    """Make the rows of both splits, and say what they are.

    Args:
        train: files, in the order in which they are read.
        eval: files; or the share of `train`'s rows that is set apart, by their text and `training.seed`; or None.
        recipe: its `dataset`, `training` and `max_seq_length` decide.
        tokenizer: of the base model.
        directory: gets `train.arrow`, `eval.arrow` where there is an eval split, and `rejects.jsonl`. None: the same
            checks and counts, and nothing is written.
        gpus: how many share a global batch.
        name_of: what to call a file in messages.
        progress: is told of rows.

    Raises:
        DataError: a file cannot be read as what it is, or too many rows cannot be used.
        LocalIOError: the local disk fails or is full.
    """
    try:
        with ExitStack() as stack:
            rejects = stack.enter_context(open_rejects(directory and directory / "rejects.jsonl"))
            train_split = stack.enter_context(Split(directory and directory / "train.arrow"))
            eval_split = train_split
            if eval is not None:
                eval_split = stack.enter_context(Split(directory and directory / "eval.arrow"))
            making = _Making(recipe, tokenizer, rejects, name_of, progress)
            share = eval if isinstance(eval, float) else 0.0
            shown = making.fill(
                train,
                train_split,
                lambda digest: eval_split if _in_eval(digest, recipe.training.seed, share) else train_split,
            )
            if eval is not None and not isinstance(eval, float):
                making.fill(eval, eval_split, lambda _: eval_split)
            _check(train_split, eval_split if eval is not None else None, recipe, rejects, gpus)
    except OSError as error:
        raise LocalIOError(f"{error.filename or directory}: {error.strerror or error}") from error
    overlap = eval_split.overlap(train_split) if eval is not None else 0
    prepared = Prepared(
        train=train_split.report(),
        eval=eval_split.report() if eval is not None else None,
        overlap=overlap,
        shown=shown,
        rejects=tuple(rejects.shown),
        warnings=(),
    )
    return prepared.model_copy(update={"warnings": tuple(_warnings(prepared))})


@dataclass(frozen=True)
class _Place:
    file: str
    where: str


@dataclass
class _Making:
    """Rows on their way into splits."""

    recipe: Recipe
    tokenizer: Tokenizer
    rejects: Rejects
    name_of: NameOf
    progress: Progress
    read: int = 0
    told: int = 0
    bad: int = 0

    def fill(self, files: Sequence[Path], home: Split, choose: Callable[[int], Split]) -> tuple[Span, ...]:
        """Put the rows of the files into the splits that `choose` picks by their digests.

        Returns:
            The first row that was kept, as spans.
        """
        shown: tuple[Span, ...] = ()
        for batch in _batches(self._rendered(files, home)):
            self.progress(self.read - self.told)
            self.told = self.read
            if self.bad > _allowed(self.recipe.dataset.max_bad_rows, self.read):
                continue  # the run will stop: all that is still wanted is the count
            for (place, row), encoded in zip(
                batch, encode([row for _, row in batch], self.tokenizer, self.recipe.max_seq_length), strict=True
            ):
                digest = _digest(row.text)
                split = choose(digest)
                kept = self._keep(place, encoded, split)
                if kept:
                    split.add(*kept, digest)
                    shown = shown or _spans(*kept, self.tokenizer)
        return shown

    def _rendered(self, files: Sequence[Path], home: Split) -> Iterator[tuple[_Place, Rendered]]:
        """The chats that can be rendered; the other rows are counted and told."""
        dataset = self.recipe.dataset
        for file in files:
            name, before = self.name_of(file), home.counts["read"]
            for where, value in read_rows(file, name, dataset.max_row_bytes, dataset.max_expansion):
                home.counts["read"] += 1
                self.read += 1
                try:
                    if isinstance(value, BadRow):
                        raise value
                    chat = to_chat(value, dataset.format)
                    rendered = render_chat(chat, self.tokenizer, self.recipe.training.train_on_responses_only)
                except BadRow as bad:
                    self.bad += 1
                    home.bad[bad.reason] += 1
                    self.rejects.add(
                        Reject(
                            file=name,
                            where=where,
                            reason=bad.reason,
                            field=bad.field,
                            message=bad.message,
                            excerpt=excerpt_of(bad.excerpt),
                        )
                    )
                else:
                    home.formats[chat.format] += 1
                    yield _Place(name, where), rendered
            if home.counts["read"] == before:
                raise DataError(f"{name} holds no rows")

    def _keep(self, place: _Place, row: Encoded, split: Split) -> tuple[list[int], list[int]] | None:
        """What the trainer gets of a row; None when that is nothing."""
        length = self.recipe.max_seq_length
        ids, labels = row.ids[:length], row.labels[:length]
        trained = labels.count(NOT_TRAINED) < len(labels)
        if row.too_long:
            split.counts["too_long"] += 1
            split.counts["answers_lost"] += not trained
            if self.recipe.dataset.on_too_long != "truncate":
                self._drop(place, split, "too_long", f"it has more than {length} tokens")
                return None
            split.counts["truncated"] += trained
        if not trained:
            split.counts["nothing_to_train"] += 1
            self._drop(place, split, "nothing_to_train", "no token of it would be trained on")
            return None
        return ids, labels

    def _drop(self, place: _Place, split: Split, reason: DropReason, message: str) -> None:
        split.counts["dropped"] += 1
        self.rejects.add(Reject(file=place.file, where=place.where, reason=reason, message=message))


def _batches(rows: Iterator[tuple[_Place, Rendered]]) -> Iterator[list[tuple[_Place, Rendered]]]:
    """Batches that one call of the tokenizer takes, bounded in rows and in characters."""
    batch: list[tuple[_Place, Rendered]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row[1].text)
        if len(batch) >= _BATCH_ROWS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _digest(text: str) -> int:
    """64 bits that tell a text from others."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _in_eval(digest: int, seed: int, share: float) -> bool:
    """Whether a row is set apart for evaluation.

    Its text and the seed alone decide, so equal rows stay together, and a dataset that grows keeps its eval rows.
    """
    return _digest(f"{seed} {digest}") < share * (1 << 64)


def _spans(ids: list[int], labels: list[int], tokenizer: Tokenizer) -> tuple[Span, ...]:
    """A row's text in pieces that are trained on and pieces that are not."""
    marked = zip(ids, (label != NOT_TRAINED for label in labels), strict=True)
    return tuple(
        Span(text=tokenizer.decode([id for id, _ in piece]), trained=trained)
        for trained, piece in itertools.groupby(marked, key=lambda pair: pair[1])
    )


def _allowed(max_bad_rows: int | str, read: int) -> float:
    """How many bad rows may be left out of so many."""
    if isinstance(max_bad_rows, str):
        return float(max_bad_rows.rstrip("%")) / 100 * read
    return max_bad_rows


def _check(train: Split, eval: Split | None, recipe: Recipe, rejects: Rejects, gpus: int) -> None:
    """Whether what was left out is few enough, and what is left enough."""
    dataset, splits = recipe.dataset, [split for split in (train, eval) if split]
    read = sum(split.counts["read"] for split in splits)
    bad = sum((split.bad for split in splits), Counter[str]())
    if bad.total() > _allowed(dataset.max_bad_rows, read):
        reasons = ", ".join(f"{count} {reason}" for reason, count in bad.most_common())
        raise DataError(
            f"{bad.total()} of {read} rows are bad, dataset.max_bad_rows is {dataset.max_bad_rows}: {reasons}\n{_first(rejects)}",
            "Mend them, or raise dataset.max_bad_rows to leave them out.",
        )
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


def _warnings(prepared: Prepared) -> Iterator[str]:
    """What a person should look at before trusting the run."""
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
