"""Where an assistant's turn begins and ends in a rendered chat, read off the chat template once.

Three questions and answers are rendered; what stands between them is what the template writes around a turn. From then on
a turn is found by searching the rendered text for these two strings, which is linear in its length, and the count of
turns found is compared with the count of assistant messages, so that a mistake cannot pass. The result equals Unsloth's
`train_on_responses_only` (docs/decisions/0004-rows-and-masks.md).
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from job.dataset.template import Message

QUESTIONS = ("7q-first-question", "7q-second-question", "7q-third-question")
ANSWERS = ("4z-first-answer", "4z-second-answer", "4z-third-answer")
CHAT: tuple[Message, ...] = tuple(
    {"role": role, "content": text}
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    for role, text in (("user", question), ("assistant", answer))
)
"""The chat that `derive_turns` wants rendered."""


@dataclass(frozen=True)
class Turns:
    """What the template writes around an answer."""

    header: str
    """Before it, such as `<|im_start|>assistant\\n`."""
    ending: str
    """After it and trained on, such as `<|im_end|>`: up to and with eos, where the template writes eos."""
    stop: str
    """The first token of `ending`: generation must stop at it."""
    eos: str

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """The first character and the end of each turn that is trained on: the answer and its ending."""
        cursor = 0
        while (header := text.find(self.header, cursor)) >= 0:
            start = header + len(self.header)
            ending = text.find(self.ending, start)
            if ending < 0:
                return
            cursor = ending + len(self.ending)
            if text.startswith(self.eos, cursor):  # some templates write eos after the last turn only
                cursor += len(self.eos)
            yield start, cursor


def derive_turns(chat: str, question: str, eos: str, added_tokens: Sequence[str]) -> Turns:
    """The turns of a template.

    Args:
        chat: `CHAT`, rendered.
        question: its first message alone, rendered.
        eos: the end-of-sequence token.
        added_tokens: every token that the tokenizer never splits.

    Raises:
        ValueError: saying what the template does wrong.
    """
    before, after = _gaps(chat)
    if QUESTIONS[0] not in question:
        raise ValueError("it leaves out the user's message")
    unit = re.compile(
        "|".join([re.escape(token) for token in sorted(added_tokens, key=len, reverse=True)] + ["."]), re.S
    )
    question_ending = question.split(QUESTIONS[0], 1)[1]
    gap = _common_start(before, unit)
    header = gap.removeprefix(_common_start([gap, question_ending], unit)).rstrip(" \t")
    header = header or gap.rstrip(
        " \t"
    )  # no header of its own, as in Mistral's: what ends the question begins the answer
    ending = _common_start(after, unit)
    if eos in ending:
        ending = ending[: ending.index(eos) + len(eos)]
    stop = next(iter(unit.findall(ending.lstrip())), "")
    if stop not in added_tokens:
        raise ValueError(f"it ends the assistant's turn with {ending!r}, which is no token that can stop generation")
    if not header:
        raise ValueError("it writes nothing between a question and its answer")
    if eos in header:
        raise ValueError(f"it opens the assistant's turn with {eos!r}, the token that ends a text")
    return Turns(header, ending, stop, eos)


def _gaps(chat: str) -> tuple[list[str], list[str]]:
    """What stands before each answer and after each answer."""
    spoken = [text for pair in zip(QUESTIONS, ANSWERS, strict=True) for text in pair]
    pieces = re.split("|".join(map(re.escape, spoken)), chat)
    if re.findall("|".join(map(re.escape, spoken)), chat) != spoken:
        raise ValueError("it does not write the messages once each and in their order")
    return pieces[1::2], pieces[2::2]


def _common_start(texts: Sequence[str], unit: re.Pattern[str]) -> str:
    """What the texts begin with in common, never cut inside a token."""
    columns = zip(*(unit.findall(text) for text in texts), strict=False)
    return "".join(units[0] for units in itertools.takewhile(lambda units: len(set(units)) == 1, columns))
