from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.dataset.chats import to_chat
from job.dataset.masking import NOT_TRAINED, Encoded, encode, render_chat
from job.dataset.rejects import BadRow
from job.dataset.tokenizer import Tokenizer

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(lambda text: text.strip())
Load = Callable[..., Tokenizer]


def encoded(tokenizer: Tokenizer, row: dict[str, Any], responses_only: bool = True, max_length: int = 4096) -> Encoded:
    (row_of_ids,) = encode([render_chat(to_chat(row, "auto"), tokenizer, responses_only)], tokenizer, max_length)
    return row_of_ids


def trained(tokenizer: Tokenizer, row: Encoded) -> str:
    return tokenizer.decode([label for label in row.labels if label != NOT_TRAINED])


def chat(*texts: str, **extra: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    } | extra


@given(texts=st.lists(_TEXTS.map(str.strip), min_size=2, max_size=6))
def test_the_answers_and_their_endings_are_trained_on(chatml: Tokenizer, texts: list[str]) -> None:
    row = encoded(chatml, chat(*texts))
    assert trained(chatml, row) == "".join(f"{answer}<|im_end|>" for answer in texts[1::2])
    assert all(label in (id, NOT_TRAINED) for id, label in zip(row.ids, row.labels, strict=True))
    assert chatml.decode(row.ids) == chatml.render(chat(*texts)["messages"])
    everything = encoded(chatml, chat(*texts), responses_only=False)
    assert everything.labels == everything.ids == row.ids


@pytest.mark.parametrize("responses_only", [True, False])
def test_an_answer_of_weight_0_is_not_trained_on(chatml: Tokenizer, responses_only: bool) -> None:
    row = chat("one?", "one", "two?", "two", "three?", "three")
    row["messages"][3]["weight"] = 0
    text = trained(chatml, encoded(chatml, row, responses_only))
    assert "one<|im_end|>" in text
    assert "two<|im_end|>" not in text
    assert "three<|im_end|>" in text
    assert ("three?" in text) is not responses_only


def test_an_answer_that_begins_with_a_line_break(load: Load) -> None:
    """Its first token may be one with the line breaks before it; the rest is trained on, where Unsloth masks it all."""
    tokenizer = load("llama-3.1")
    assert (
        trained(tokenizer, encoded(tokenizer, chat("Hello", "\n\nHi there")))[-21:].lstrip("\n") == "Hi there<|eot_id|>"
    )


def test_text_that_looks_like_a_turn_is_refused(load: Load) -> None:
    tokenizer = load("alpaca")  # its turns begin with plain text
    for row in (
        chat("Repeat: ### Response:\nyes", "yes"),
        chat("Repeat it.", "### Response:\nyes"),
    ):
        with pytest.raises(BadRow) as raised:
            encoded(tokenizer, row)
        assert raised.value.reason == "turns_unclear"
    row = chat("Repeat: ### Response", "### Response: yes")
    assert trained(tokenizer, encoded(tokenizer, row)) == "### Response: yes<|end_of_text|>"


_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
_CALL = {"function": {"name": "weather", "arguments": {"town": "Köln"}}}
_TOOL_CHAT: dict[str, Any] = {
    "tools": [_TOOL],
    "messages": [
        {"role": "user", "content": "Warm?"},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "content": '{"celsius": "12"}'},
        {"role": "assistant", "content": "12 degrees"},
    ],
}


@pytest.mark.parametrize("template", ["llama-3.1", "qwen-2.5", "qwen-3"])
def test_tool_calls_are_trained_on(load: Load, template: str) -> None:
    tokenizer = load(template)
    text = trained(tokenizer, encoded(tokenizer, _TOOL_CHAT))
    assert '{"name": "weather", ' in text
    assert "Köln" in text
    assert "12 degrees" in text
    assert "celsius" not in text


@pytest.mark.parametrize(
    "template", ["chatml", "zephyr", "phi-4", "gemma", "gemma-3", "mistral", "alpaca", "llama-3", "phi-3"]
)
def test_what_a_template_cannot_say_is_refused(load: Load, template: str) -> None:
    tokenizer = load(template)
    for row in (
        chat("Warm?", "12 degrees", tools=[_TOOL]),
        {"messages": _TOOL_CHAT["messages"]},
    ):
        with pytest.raises(BadRow) as raised:
            encoded(tokenizer, row)
        assert raised.value.reason in ("tools_unsupported", "not_rendered", "template_refused")


def test_a_message_that_the_template_leaves_out(load: Load) -> None:
    tokenizer = load("mistral")
    chats = chat("Hello", "Hi")
    chats["messages"].insert(0, {"role": "system", "content": "Be brief."})
    assert "[INST] Be brief. Hello [/INST]" in tokenizer.decode(encoded(tokenizer, chats).ids)


def test_a_long_row_is_not_tokenized_to_its_end(chatml: Tokenizer) -> None:
    row = encoded(chatml, chat("word " * 100_000, "Hi"), max_length=10)
    assert row.too_long
    assert 10 < len(row.ids) < 12 * chatml.longest_token
    assert set(row.labels) == {NOT_TRAINED}
    whole = encoded(chatml, chat("word " * 100_000, "Hi"), max_length=10**6)
    assert whole.ids[:10] == row.ids[:10]
    assert not whole.too_long
