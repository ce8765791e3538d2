"""A dataset's files to the rows that the trainer takes, once: read, converted, checked, rendered, tokenized, masked."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from job.contract.config import Recipe
from job.contract.errors import DataError, LocalIOError
from job.dataset.chats import to_chat
from job.dataset.limits import check, warnings
from job.dataset.masking import NOT_TRAINED, Encoded, Rendered, encode, render_chat
from job.dataset.prepared import EVAL_ROWS, REJECTS, TRAIN_ROWS, Prepared, Span
from job.dataset.rejects import BadRow, DropReason, Reject, Rejects, open_rejects
from job.dataset.rows import read_rows
from job.dataset.split import Split
from job.dataset.tokenizer import Tokenizer

Progress = Callable[[int], None]
"""Called with the number of rows read since the last call."""
NameOf = Callable[[Path], str]
"""What the user calls a file."""

_BATCH_ROWS, _BATCH_CHARACTERS = 512, 1 << 20  # an encoding takes about a hundred bytes a token


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
        directory: gets `TRAIN_ROWS`, `EVAL_ROWS` where there is an eval split, and `REJECTS`. None: the same checks and
            counts, and nothing is written.
        gpus: how many share a global batch.
        name_of: what to call a file in messages.
        progress: is told of rows.

    Raises:
        DataError: a file cannot be read as what it is, or too many rows cannot be used.
        LocalIOError: the local disk fails or is full.
    """
    share = eval if isinstance(eval, float) else 0.0
    try:
        with ExitStack() as stack:
            rejects = stack.enter_context(open_rejects(directory and directory / REJECTS))
            train_split = stack.enter_context(Split(directory and directory / TRAIN_ROWS))
            eval_split = None if eval is None else stack.enter_context(Split(directory and directory / EVAL_ROWS))

            def split_of(digest: int) -> Split:
                return eval_split if eval_split and _in_eval(digest, recipe.training.seed, share) else train_split

            making = _Making(recipe, tokenizer, rejects, name_of, progress)
            shown = making.fill(train, train_split, split_of)
            if eval_split and not isinstance(eval, float):
                making.fill(eval or (), eval_split, lambda _: eval_split)
            check(train_split, eval_split, recipe, rejects, gpus)
    except OSError as error:
        words = f"{error.filename or directory}: {error.strerror or error}"
        raise LocalIOError(words, "Free space, or give the run a larger disk.") from error
    prepared = Prepared(
        train=train_split.report(),
        eval=eval_split.report() if eval_split else None,
        overlap=eval_split.overlap(train_split) if eval_split else 0,
        shown=shown,
        rejects=tuple(rejects.shown),
        warnings=(),
    )
    return prepared.model_copy(update={"warnings": tuple(warnings(prepared))})


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
            self._tell()
            if self._hopeless:
                continue
            for (place, row), encoded in zip(
                batch, encode([row for _, row in batch], self.tokenizer, self.recipe.max_seq_length), strict=True
            ):
                digest = _digest(row.text)
                split = choose(digest)
                kept = self._keep(place, encoded, split)
                if kept:
                    split.add(*kept, digest)
                    shown = shown or _spans(*kept, self.tokenizer)
        self._tell()
        return shown

    def _tell(self) -> None:
        self.progress(self.read - self.told)
        self.told = self.read

    @property
    def _hopeless(self) -> bool:
        """Whether the run will stop, so that nothing but counts is wanted of the rows to come."""
        allowed = self.recipe.dataset.max_bad_rows
        return isinstance(allowed, int) and self.bad > allowed  # a share is of rows that are yet to come

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
                    self.rejects.add(bad.at(name, where))
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
