"""A chat to token ids and labels: rendered, tokenized, and masked where the loss is not taken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import orjson
import tokenizers

from job.dataset.chats import Chat
from job.dataset.rejects import BadRow
from job.dataset.template import RENDER_ERRORS
from job.dataset.tokenizer import Tokenizer

NOT_TRAINED = -100
"""The label of a token that the loss is not taken on: torch's `ignore_index`."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A chat's text, and which of its characters are trained on."""

    text: str
    trained: list[tuple[int, int]]
    """Ranges of characters, in order."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as the trainer takes it."""

    ids: list[int]
    labels: list[int]
    """As long as `ids`: the id, or `NOT_TRAINED`."""
    too_long: bool
    """Has more tokens than asked for; `ids` then holds these at least, and may end before the row does."""


def render_chat(chat: Chat, tokenizer: Tokenizer, responses_only: bool) -> Rendered:
    """The text of a chat.

    Args:
        chat: a checked chat.
        tokenizer: what renders it.
        responses_only: train on the assistant's turns alone; else on all but those that the row wants left out.

    Raises:
        BadRow: the template cannot say what the row says.
    """
    _check_texts(chat, tokenizer)
    try:
        text = tokenizer.render(chat.messages, tools=chat.tools)
    except RENDER_ERRORS as error:
        raise BadRow("template_refused", f"the chat template refuses the row: {error}") from error
    turns = list(tokenizer.turns.find(text))
    headers = text.count(tokenizer.turns.header, 0, turns[-1][1]) if turns else 0
    if not headers == len(turns) == len(chat.trained):
        raise BadRow("turns_unclear", "a message holds what begins an answer", excerpt=tokenizer.turns.header)
    _check_rendered(chat, text, turns)
    if responses_only:
        return Rendered(text, [turn for turn, trained in zip(turns, chat.trained, strict=True) if trained])
    left_out = [turn for turn, trained in zip(turns, chat.trained, strict=True) if not trained]
    starts, ends = [0, *(end for _, end in left_out)], [*(start for start, _ in left_out), len(text)]
    return Rendered(text, list(zip(starts, ends, strict=True)))


def _check_texts(chat: Chat, tokenizer: Tokenizer) -> None:
    """No text may hold a token that makes up turns: it would be read as one. Nothing may be left unsaid for want of a role."""
    for index, message in enumerate(chat.messages):
        texts = [message["content"]]
        if len(message) > 2:
            texts.append(_json_text(message, f"messages[{index}]"))
        for text in texts:
            if found := tokenizer.control.search(text):
                raise BadRow("special_token", "the text holds a special token", f"messages[{index}]", found.group())
        if message["role"] == "tool" and not tokenizer.shows_tool_turns:
            raise BadRow("tools_unsupported", "the chat template has no tool turns", f"messages[{index}]")
    if chat.tools:
        if not tokenizer.shows_tools:
            raise BadRow("tools_unsupported", "the chat template leaves out tools", "tools")
        if found := tokenizer.control.search(_json_text(chat.tools, "tools")):
            raise BadRow("special_token", "the text holds a special token", "tools", found.group())


def _json_text(value: object, where: str) -> str:
    """A value as one text that holds all of its texts; JSON escapes nothing that a special token is made of."""
    try:
        return orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError as error:  # 254 levels are the most that it writes
        raise BadRow("bad_tools", f"cannot be written as JSON: {error}", where) from error


def _check_rendered(chat: Chat, text: str, turns: Sequence[tuple[int, int]]) -> None:
    """What the template was given stands in its text. An answer's own text may differ: templates drop old reasoning."""
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant" and message["content"].strip() not in text and _escaped(message) not in text:
            raise BadRow(
                "not_rendered", f"the chat template leaves out this message of {message['role']}", f"messages[{index}]"
            )
    for answer, (start, end) in zip(chat.answers, turns, strict=True):
        for call in answer.get("tool_calls", ()):
            if call["function"]["name"] not in text[start:end]:
                raise BadRow("tools_unsupported", "the chat template leaves out tool_calls", "tool_calls")


def _escaped(message: dict[str, str]) -> str:
    """The content as JSON holds it; some templates write what a tool says so."""
    return orjson.dumps(message["content"]).decode()[1:-1]


def encode(rows: Sequence[Rendered], tokenizer: Tokenizer, max_length: int) -> Iterator[Encoded]:
    """Token ids and labels of rendered chats.

    Args:
        rows: one batch; all of it is tokenized at once, on all cores.
        tokenizer: of the base model.
        max_length: in tokens. What cannot be among the first `max_length` of them, and one, is not tokenized.
    """
    # No token is longer than the longest, so these characters hold more tokens than asked for.
    enough = (max_length + 2) * tokenizer.longest_token
    for row, encoding in zip(rows, tokenizer.encode_batch([row.text[:enough] for row in rows]), strict=True):
        ids = encoding.ids
        labels = [NOT_TRAINED] * len(ids)
        for start, end in row.trained:
            first, last = _first_token(encoding, start, enough), _first_token(encoding, end, enough)
            labels[first:last] = ids[first:last]
        yield Encoded(ids, labels, too_long=len(ids) > max_length or len(row.text) > enough)


def _first_token(encoding: tokenizers.Encoding, char: int, end: int) -> int:
    """The first token that begins at a character or after it; the number of tokens where there is none."""
    while char < end:
        index = encoding.char_to_token(char)
        if index is not None:
            begins = encoding.token_to_chars(index)
            return index if begins and begins[0] >= char else index + 1
        char += 1
    return len(encoding.ids)
