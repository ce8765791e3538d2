"""What is known of a dataset once its rows are prepared: the part of the report that a person looks at first."""

from job.contract.model import Document
from job.dataset.rejects import Reject

TRAIN_ROWS, EVAL_ROWS, REJECTS = "train.arrow", "eval.arrow", "rejects.jsonl"
"""The files that `prepare` leaves."""


class SplitReport(Document):
    """Counts of one split."""

    read: int
    """Rows that its files hold."""
    rows: int
    """Rows that are trained or evaluated on."""
    bad: dict[str, int]
    """Unusable rows by reason."""
    formats: dict[str, int]
    """What was detected, and how often."""
    too_long: int
    """Rows of more than `max_seq_length` tokens, whatever became of them."""
    answers_lost: int
    """Of these, the ones that would have nothing to train on if they were cut."""
    truncated: int
    """Rows that were cut."""
    nothing_to_train: int
    """Rows left out because no token of theirs would be trained on."""
    tokens: int
    trained_tokens: int
    longest: int
    """In tokens."""
    lengths: dict[str, int]
    """Rows by length: at most so many tokens, and more than the next smaller key."""
    duplicates: int
    """Rows that are the same as an earlier one."""


class Span(Document):
    """A piece of a row's text."""

    text: str
    trained: bool
    """Whether the loss is taken on it."""


class Prepared(Document):
    """A dataset, ready for the trainer."""

    train: SplitReport
    eval: SplitReport | None
    overlap: int
    """Eval rows that are in train as well."""
    shown: tuple[Span, ...]
    """The first row: what is trained on and what is not."""
    rejects: tuple[Reject, ...]
    """The first few rows that were left out."""
    warnings: tuple[str, ...]
    """What a person should look at."""
