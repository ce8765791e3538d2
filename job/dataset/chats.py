"""Any row that real dumps hold, turned into a chat and checked."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from job.dataset.rejects import BadRow
from job.dataset.template import Message
from job.dataset.tool_calls import read_function_call, read_tool_call, read_tools

Format = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]

_CALLS = ("function_call", "tool_call")  # an assistant's turn whose text is a function call
ROLES = {
    alias: role
    for role, aliases in {
        "system": ("system", "developer"),
        "user": ("user", "human", "prompter", "input", "instruction"),
        "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai", "output", *_CALLS),
        "tool": ("tool", "observation", "function", "function_response", "tool_response", "ipython"),
    }.items()
    for alias in aliases
}
"""What real dumps call the four roles."""

COLUMNS = frozenset(
    {"messages", "conversations", "conversation", "instruction", "input", "output", "history", "prompt", "completion"}
    | {"response", "system", "tools", "image", "images", "video", "videos", "audio", "audios"}
)
"""The keys of a row that mean something to a format; others are for people, and are not read."""

_FOLLOWS = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
_LISTS: dict[str, tuple[str, ...]] = {"messages": ("messages",), "sharegpt": ("conversations", "conversation")}
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_EXTRAS = ("name", "tool_call_id", "reasoning_content")


@dataclass(slots=True)
class Chat:
    """A row, ready to be rendered."""

    format: Format
    messages: list[Message]
    """`role` and `content`, and where given `tool_calls`, `name`, `tool_call_id`, `reasoning_content`."""
    trained: list[bool] = field(default_factory=list)
    """For each assistant message, whether the row wants it trained on."""
    tools: list[Any] | None = None

    @property
    def answers(self) -> Iterable[Message]:
        """The assistant's messages."""
        return (message for message in self.messages if message["role"] == "assistant")


def to_chat(row: dict[str, Any], wanted: Format | Literal["auto"]) -> Chat:
    """The chat that a row holds.

    Args:
        row: as its file holds it.
        wanted: the format that it must have; `auto` takes any.

    Raises:
        BadRow: naming the field and what is wrong with it.
    """
    found = detect(row) if wanted == "auto" else wanted
    for key in _MEDIA:
        if row.get(key):
            raise BadRow("not_text", "images, sound and video are not supported", key, row[key])
    chat = Chat(found, [])
    if row.get("system") and found != "messages":
        _add(chat, "system", row["system"], "system")
    match found:
        case "messages" | "sharegpt":
            key = next((key for key in _LISTS[found] if row.get(key) is not None), _LISTS[found][0])
            _add_messages(chat, row.get(key), key)
        case "alpaca":
            _add_alpaca(chat, row)
        case "prompt_completion":
            _add_prompt_completion(chat, row)
    _check_order(chat)
    if tools := row.get("tools"):
        chat.tools = read_tools(tools)
    return chat


def detect(row: dict[str, Any]) -> Format:
    """The format that a row's keys tell.

    Raises:
        BadRow: when they tell none.
    """
    given = {key for key, value in row.items() if value is not None}
    if "messages" in given:
        return "messages"
    if given & {"conversations", "conversation"}:
        return "sharegpt"
    if "instruction" in given and given & {"output", "response"}:
        return "alpaca"
    if "prompt" in given and given & {"completion", "response"}:
        return "prompt_completion"
    if "messages" in row or "conversations" in row:  # and null
        return "messages" if "messages" in row else "sharegpt"
    raise BadRow(
        "unknown_format",
        "the row has none of messages, conversations, instruction with output, prompt with completion",
        excerpt="its keys are " + ", ".join(row),
    )


def _add_messages(chat: Chat, messages: Any, key: str) -> None:
    """Append a list of messages in either spelling, `role` and `content` or `from` and `value`."""
    if not isinstance(messages, list):
        raise BadRow("no_messages", f"{key} must be a list of messages", key, messages)
    if not messages:
        raise BadRow("no_messages", f"{key} is empty", key)
    for index, message in enumerate(messages):
        where = f"{key}[{index}]"
        if type(message) is not dict:
            raise BadRow("bad_message", "a message must be an object", where, message)
        content = message.get("value")
        _add(
            chat,
            message.get("from") or message.get("role"),
            message.get("content") if content is None else content,
            where,
            message,
        )


def _add(chat: Chat, alias: Any, content: Any, where: str, message: dict[str, Any] | None = None) -> None:
    """Append one message.

    Args:
        chat: what it is appended to.
        alias: its role, as the row calls it.
        content: its text, or a list of text parts.
        where: its place in the row.
        message: the whole of it, where it may hold more than a role and a text.
    """
    if type(alias) is str and alias not in ROLES:
        alias = alias.strip().lower()
    if type(alias) is not str or alias not in ROLES:
        raise BadRow("unknown_role", "the role is not known", f"{where}.role", alias)
    role = ROLES[alias]
    added: Message = {"role": role, "content": content}
    if type(content) is not str:
        added["content"] = _text(content, where, bool(message and message.get("tool_calls")))
    if message and (len(message) > 2 or "tool_calls" in message):
        _add_extras(chat, added, message, where)
    elif role == "assistant":
        chat.trained.append(True)
    if alias in _CALLS:
        added.update(content="", tool_calls=[read_function_call(added["content"], where)])
    chat.messages.append(added)
    if role != "tool" and role != "system" and not added["content"].strip() and "tool_calls" not in added:
        raise BadRow("empty_content", f"the {role}'s message is empty", f"{where}.content")


def _text(content: Any, where: str, may_be_null: bool) -> str:
    """The text of content that is no string: parts of text joined, null where a message consists of tool calls."""
    if content is None and may_be_null:
        return ""
    if not isinstance(content, list) or not content:
        raise BadRow("bad_content", "content must be text or a list of text parts", f"{where}.content", content)
    texts: list[str] = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else part
        if isinstance(part, dict) and part.get("type", "text") != "text":
            raise BadRow("not_text", "only parts of type text are supported", f"{where}.content", part.get("type"))
        if not isinstance(text, str):
            raise BadRow("bad_content", "a part of the content is not text", f"{where}.content", part)
        texts.append(text)
    return "".join(texts)


def _add_extras(chat: Chat, added: Message, message: dict[str, Any], where: str) -> None:
    """What a message may hold beside its role and text: tool calls, names, reasoning, and whether it is trained on."""
    for key in _EXTRAS:
        if isinstance(message.get(key), str):
            added[key] = message[key]
    if calls := message.get("tool_calls"):
        if added["role"] != "assistant" or not isinstance(calls, list):
            raise BadRow(
                "bad_tools", "tool_calls must be a list, in an assistant's message", f"{where}.tool_calls", calls
            )
        added["tool_calls"] = [read_tool_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    flags = [message[key] for key in ("weight", "train") if message.get(key) is not None]
    for flag in flags:
        if not isinstance(flag, (bool, int, float)) or flag not in (0, 1):
            raise BadRow("bad_weight", "weight must be 0 or 1, train true or false", where, flag)
    if added["role"] == "assistant":
        chat.trained.append(all(flags))
    elif any(flags):
        raise BadRow("bad_weight", f"a {added['role']} message cannot be trained on", where)


def _add_alpaca(chat: Chat, row: dict[str, Any]) -> None:
    """Earlier exchanges, then the instruction with its input below it, then the output."""
    history = row.get("history") or []
    if not isinstance(history, list):
        raise BadRow("bad_message", "history must be a list", "history", history)
    for index, exchange in enumerate(history):
        where = f"history[{index}]"
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise BadRow("bad_message", "history must hold pairs of a question and an answer", where, exchange)
        _add(chat, "user", exchange[0], where)
        _add(chat, "assistant", exchange[1], where)
    question, more = row.get("instruction"), row.get("input")
    if more:
        if not isinstance(question, str) or not isinstance(more, str):
            raise BadRow("bad_content", "instruction and input must be text", "input", more)
        question = f"{question}\n\n{more}" if question else more
    _add(chat, "user", question, "instruction")
    key = "response" if row.get("output") is None and "response" in row else "output"
    _add(chat, "assistant", row.get(key), key)


def _add_prompt_completion(chat: Chat, row: dict[str, Any]) -> None:
    """The prompt as the user's turn, the completion as the assistant's; of lists of messages, only the completion's are trained on."""
    prompt, key = row.get("prompt"), "response" if row.get("completion") is None and "response" in row else "completion"
    if isinstance(prompt, list):
        _add_messages(chat, prompt, "prompt")
        chat.trained = [False] * len(chat.trained)
    else:
        _add(chat, "user", prompt, "prompt")
    completion = row.get(key)
    if isinstance(completion, list):
        _add_messages(chat, completion, key)
    else:
        _add(chat, "assistant", completion, key)


def _check_order(chat: Chat) -> None:
    """A system message at most, in front; then questions and answers in turn; tools speak after the assistant."""
    before = ""
    for index, message in enumerate(chat.messages):
        role = message["role"]
        if role not in _FOLLOWS[before]:
            place = f"after a message of {before}" if before else "first"
            raise BadRow(
                "wrong_order", f"a message of {role} cannot come {place}", f"messages[{index}]", message["content"]
            )
        before = role
    if not chat.trained:
        raise BadRow("no_answer", "there is no message of the assistant")
