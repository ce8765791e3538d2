from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.dataset.chats import ROLES, Chat, to_chat
from job.dataset.rejects import BadRow, excerpt_of

_WORDS = st.sampled_from(
    [
        *ROLES,
        *(
            "messages",
            "conversations",
            "conversation",
            "from",
            "value",
            "role",
            "content",
            "instruction",
            "input",
            "text",
        ),
        *(
            "prompt",
            "completion",
            "response",
            "tools",
            "tool_calls",
            "function",
            "name",
            "arguments",
            "weight",
            "train",
        ),
        *("history", "system", "type", "images", "", " Human ", "{}", '{"name": "f", "arguments": {}}'),
    ]
)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | _WORDS | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=5),
    max_leaves=20,
)
_MESSAGES = st.lists(
    st.dictionaries(st.sampled_from(["from", "value", "role", "content", "weight", "tool_calls"]), _VALUES, max_size=4),
    max_size=5,
)
_ROWS = st.dictionaries(_WORDS, _VALUES | _MESSAGES, max_size=5) | st.fixed_dictionaries({"messages": _MESSAGES})


def _chat(row: dict[str, Any], wanted: Any) -> Chat | BadRow:
    try:
        return to_chat(row, wanted)
    except BadRow as bad:
        return bad


@given(_ROWS, st.sampled_from(["auto", "messages", "sharegpt", "alpaca", "prompt_completion"]))
def test_any_object_is_a_chat_or_a_bad_row(row: dict[str, Any], wanted: Any) -> None:
    chat = _chat(row, wanted)
    if isinstance(chat, BadRow):
        assert chat.message
        assert len(excerpt_of(chat.excerpt)) <= 120
        return
    assert wanted in ("auto", chat.format)
    assert all(isinstance(message["content"], str) for message in chat.messages)
    assert len(chat.trained) == len(list(chat.answers)) > 0


def _texts(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in to_chat(row, "auto").messages]


@pytest.mark.parametrize(
    ("human", "gpt"),
    [("human", "gpt"), ("user", "chatgpt"), ("USER ", "bing"), ("prompter", "bard"), ("user", "model")],
)
@pytest.mark.parametrize(("role", "text"), [("from", "value"), ("role", "content"), ("from", "content")])
@pytest.mark.parametrize("key", ["messages", "conversations", "conversation"])
def test_the_names_of_real_dumps(human: str, gpt: str, role: str, text: str, key: str) -> None:
    row = {
        key: [{role: "system", text: "Be brief."}, {role: human, text: "Hello"}, {role: gpt, text: "Hi"}],
        "id": 7,
        "score": 0.1,
    }
    assert _texts(row) == [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi")]


def test_alpaca() -> None:
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "text": "Below is an instruction"}
    assert _texts(row) == [("user", "Add.\n\n1 2"), ("assistant", "3")]
    longer: dict[str, Any] = {
        "instruction": "Add.",
        "input": "",
        "output": "3",
        "system": "Be brief.",
        "history": [["Hello", "Hi"]],
    }
    assert _texts(longer) == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "Add."),
        ("assistant", "3"),
    ]


@pytest.mark.parametrize("key", ["completion", "response"])
def test_prompt_and_completion(key: str) -> None:
    assert _texts({"prompt": "1+1=", key: "2"}) == [("user", "1+1="), ("assistant", "2")]
    prompt = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2"},
    ]
    chat = to_chat({"prompt": prompt, key: [{"role": "assistant", "content": "4"}]}, "auto")
    assert chat.trained == [False, True]


def test_parts_of_text_are_joined() -> None:
    content = [{"type": "text", "text": "Hel"}, {"text": "lo"}, "!"]
    assert (
        _texts({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Hi"}]})[0][1]
        == "Hello!"
    )


@pytest.mark.parametrize(
    ("flag", "trained"), [({"weight": 0}, False), ({"weight": 1}, True), ({"train": False}, False), ({}, True)]
)
def test_flags_of_an_answer(flag: dict[str, Any], trained: bool) -> None:
    question = {"role": "user", "content": "Hello", "weight": None, "train": False}
    row = {"messages": [question, {"role": "assistant", "content": "Hi"} | flag]}
    assert to_chat(row, "auto").trained == [trained]


@pytest.mark.parametrize("flag", [{"weight": 0.5}, {"train": "no"}, {"weight": 2}])
def test_flags_that_mean_nothing_are_refused(flag: dict[str, Any]) -> None:
    row = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"} | flag]}
    with pytest.raises(BadRow, match="weight must be 0 or 1"):
        to_chat(row, "auto")
    with pytest.raises(BadRow, match="cannot be trained on"):
        to_chat({"messages": [{"role": "user", "content": "Hello", "weight": 1}]}, "auto")


def test_tool_calls_in_either_spelling() -> None:
    call = {"name": "weather", "arguments": {"town": "Köln"}}
    openai = {
        "messages": [
            {"role": "user", "content": "Warm?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"town": "Köln"}'}}
                ],
            },
            {"role": "tool", "content": "12", "tool_call_id": "a1", "name": "weather"},
            {"role": "assistant", "content": "12 degrees"},
        ],
        "tools": [{"type": "function", "function": {"name": "weather"}}],
    }
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "Warm?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"town": "Köln"}}'},
            {"from": "observation", "value": "12"},
            {"from": "gpt", "value": "12 degrees"},
        ],
        "tools": '[{"type": "function", "function": {"name": "weather"}}]',
    }
    for row in (openai, sharegpt):
        chat = to_chat(row, "auto")
        assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
        assert chat.messages[1]["tool_calls"][0]["function"] == call
        assert chat.messages[1]["content"] == ""
        assert chat.tools == [{"type": "function", "function": {"name": "weather"}}]
        assert chat.trained == [True, True]


@pytest.mark.parametrize(
    "row",
    [
        {"tools": "no json"},
        {"tools": 7},
        {"tools": ["f"]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [7]}]},
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]},
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "x"}]},
            ]
        },
        {"messages": [{"role": "user", "content": "a"}, {"role": "function_call", "content": "f(1)"}]},
    ],
)
def test_tools_that_are_none(row: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(BadRow) as raised:
        to_chat({"messages": messages} | row, "auto")
    assert raised.value.reason == "bad_tools"


@pytest.mark.parametrize("key", ["images", "image", "videos", "audio"])
def test_what_is_not_text_is_refused(key: str) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], key: ["a.png"]}
    with pytest.raises(BadRow, match="not supported"):
        to_chat(row, "auto")
    assert to_chat(row | {key: []}, "auto").messages
