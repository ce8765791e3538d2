"""Our templates and our mask against Unsloth's own, for the same chats and the same tokenizer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from job.dataset.chats import to_chat
from job.dataset.masking import NOT_TRAINED, encode, render_chat
from job.dataset.rejects import BadRow
from job.dataset.template import RENDER_ERRORS
from job.dataset.tokenizer import Tokenizer, load_tokenizer
from tests.dataset.conftest import DAY, FAMILIES, FAMILY_OF, Answer, write_tokenizer

_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a town, in °C & %",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
        },
    }
]


def _messages(*texts: str, system: str | None = None) -> list[dict[str, Any]]:
    turns = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


_CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Köln", "days": 2}}}
CHATS: list[dict[str, Any]] = [
    {"messages": _messages("Hello, who are you?", "I am a model.")},
    {"messages": _messages("Hello", "Hi!", "And now?", "Nothing.\nReally: nothing.\n\nYes.", "Good.", "Bye")},
    {"messages": _messages("Hello", "Hi!", system="You answer in one word.")},
    {"messages": _messages("Hello", "Hi!", "Once more", "Hi hi!", system="")},
    {
        "messages": _messages(
            "  spaces  around ", "kept   inside, and at the end  ", "\ttab", "x = {'a': [1, 2]}  # ü 漢字 🙂"
        )
    },
    {"messages": _messages("Is an open question answered?", "Yes.", "And this one?")},
    {"messages": _messages("Think.", "<think>\nSo it is.\n</think>\n\nFour.", "Again.", "<think>It is.</think>Five.")},
    {"messages": _messages('<b>html</b> & "quotes"', "</p> 'single' \\ back")},
    {
        "tools": _TOOLS,
        "messages": [
            {"role": "system", "content": "Call tools."},
            {"role": "user", "content": "How warm is it in Köln?"},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "content": '{"celsius": 12}'},
            {"role": "assistant", "content": "12 degrees."},
        ],
    },
    {"tools": _TOOLS, "messages": _messages("How warm?", "Where?", "In Köln", "12 degrees.")},
]

_EOS_AT_THE_END_ONLY = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_ROLE_AS_IT_IS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OWN = {"eos at the end only": ("phi-3", _EOS_AT_THE_END_ONLY), "the role as it is": ("smollm", _ROLE_AS_IT_IS)}
"""Templates that come with a tokenizer."""
OTHER_BASE = [("llama-3.1", "llama-3-base"), ("qwen-2.5", "qwen-base"), ("chatml", "qwen-base")]
"""Templates on a tokenizer whose eos they do not write."""


@pytest.fixture(scope="module")
def both(
    ask_unsloth: Callable[..., list[list[Answer]]],
    tokenizer_directory: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Tokenizer, list[Answer]]]:
    """Our tokenizer and Unsloth's answers to `CHATS`, by template."""
    ours: dict[str, Tokenizer] = {}
    questions: list[dict[str, Any]] = []
    for template, family in [*FAMILY_OF.items(), *OTHER_BASE]:
        directory = tokenizer_directory(family)
        ours[f"{template} on {family}"] = load_tokenizer(directory, template, DAY)
        questions.append({"directory": str(directory), "template": template, "chats": CHATS})
    for name, (family, text) in OWN.items():
        directory = write_tokenizer(tmp_path_factory.mktemp("own"), FAMILIES[family], text)
        ours[name] = load_tokenizer(directory, None, DAY)
        questions.append({"directory": str(directory), "template": None, "chats": CHATS})
    return {name: (ours[name], answers) for name, answers in zip(ours, ask_unsloth(questions), strict=True)}


CASES = [f"{template} on {family}" for template, family in [*FAMILY_OF.items(), *OTHER_BASE]] + list(OWN)


@pytest.mark.parametrize("case", CASES)
def test_text_is_unsloths(both: dict[str, tuple[Tokenizer, list[Answer]]], case: str) -> None:
    tokenizer, answers = both[case]
    for chat, answer in zip(CHATS, answers, strict=True):
        for expected, prompt in ((answer.text, False), (answer.prompt, True)):
            try:
                text = tokenizer.render(chat["messages"], tools=chat.get("tools"), add_generation_prompt=prompt)
            except RENDER_ERRORS:
                text = None
            assert text == expected


@pytest.mark.parametrize("case", CASES)
def test_ids_and_labels_are_unsloths(both: dict[str, tuple[Tokenizer, list[Answer]]], case: str) -> None:
    tokenizer, answers = both[case]
    refused = []
    for chat, answer in zip(CHATS, answers, strict=True):
        try:
            rendered = render_chat(to_chat(chat, "messages"), tokenizer, responses_only=True)
        except BadRow as bad:
            refused.append(("tools" in chat, bad.reason))
            continue
        (encoded,) = encode([rendered], tokenizer, 4096)
        assert encoded.ids == answer.ids
        assert encoded.labels == answer.labels
        assert any(label != NOT_TRAINED for label in encoded.labels)
    assert set(refused) <= {(True, "tools_unsupported"), (True, "template_refused")}
