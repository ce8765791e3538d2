"""Our renderer against transformers' own, for every template that we ship."""

from collections.abc import Callable
from datetime import date
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from job.dataset.template import RENDER_ERRORS, Render, compile_template, try_out
from job.dataset.tokenizer import TEMPLATES as DIRECTORY

TEMPLATES = {path.stem: path.read_text() for path in DIRECTORY.glob("*.jinja")} | {
    "generation": "{% for m in messages %}{% generation %}{% set x = m.content %}{{ x }}{% endgeneration %}{{ x }}{% endfor %}",
    "controls": "{% for m in messages %}{% if loop.index == 3 %}{% break %}{% endif %}{{ m.content|tojson }}\n  {% if 1 %}\n{% endif %}{% endfor %}",
    "date": "{{ strftime_now('%d %b %Y') }}{{ bos_token }}{{ nothing }}{{ tools }}{{ documents }}{{ tools|tojson(indent=2) }}",
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
_TEXTS = st.text(max_size=20) | st.sampled_from(
    ["<think>a</think>b", "<tool_response>c</tool_response>", "\n x \n", "</p>&'\"", "{{ 1 }}"]
)
_CALLS = st.fixed_dictionaries(
    {
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": _TEXTS, "arguments": st.dictionaries(_TEXTS, _TEXTS, max_size=2)}),
    }
)
_MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": _TEXTS | st.none()},
    optional={"tool_calls": st.lists(_CALLS, max_size=2), "reasoning_content": _TEXTS},
)


@cache
def _renderer(name: str) -> Render:
    return compile_template(TEMPLATES[name], date.today(), TOKENS)


def _text(render: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a renderer gives; None where the template refuses."""
    try:
        return render(*arguments, **named)
    except RENDER_ERRORS:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
@given(
    messages=st.lists(_MESSAGES, min_size=1, max_size=6),
    tools=st.none() | st.lists(st.dictionaries(_TEXTS, _TEXTS, max_size=2), max_size=2),
    prompt=st.booleans(),
)
def test_rendering_is_transformers(name: str, messages: list[dict[str, Any]], tools: Any, prompt: bool) -> None:
    theirs = _text(
        render_jinja_template,
        [messages],
        tools=tools,
        chat_template=TEMPLATES[name],
        add_generation_prompt=prompt,
        **TOKENS,
    )
    ours = _text(_renderer(name), messages, tools=tools, add_generation_prompt=prompt)
    assert ours == (theirs and theirs[0][0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_process_of_its_own_renders_the_same(name: str) -> None:
    chats = [
        [{"role": role, "content": text}]
        for role, text in (("user", "Hello ü 漢"), ("assistant", "Hi"), ("alien", "?"))
    ]
    alone = try_out(TEMPLATES[name], date.today(), TOKENS, [{"messages": chat} for chat in chats])
    assert alone == [_text(_renderer(name), chat) for chat in chats]
    assert alone[0] is not None
