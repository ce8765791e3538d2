"""Our renderer against transformers' own, for every template that we ship."""

from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.dataset.template import RENDER_ERRORS, compile_template, try_out
from job.dataset.tokenizer import _TEMPLATES

transformers = pytest.importorskip("transformers.utils.chat_template_utils")

TEMPLATES = {path.stem: path.read_text() for path in _TEMPLATES.glob("*.jinja")} | {
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


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=60)
@given(
    messages=st.lists(_MESSAGES, min_size=1, max_size=6),
    tools=st.none() | st.lists(st.dictionaries(_TEXTS, _TEXTS, max_size=2), max_size=2),
    prompt=st.booleans(),
)
def test_rendering_is_transformers(name: str, messages: list[dict[str, Any]], tools: Any, prompt: bool) -> None:
    try:
        (theirs,), _ = transformers.render_jinja_template(
            [messages], tools=tools, chat_template=TEMPLATES[name], add_generation_prompt=prompt, **TOKENS
        )
    except RENDER_ERRORS:
        theirs = None
    render = compile_template(TEMPLATES[name], date.today(), TOKENS)
    try:
        ours = render(messages, tools=tools, add_generation_prompt=prompt)
    except RENDER_ERRORS:
        ours = None
    assert ours == theirs
    if tools is None:
        (alone,) = try_out(
            TEMPLATES[name], date.today(), TOKENS, [{"messages": messages, "add_generation_prompt": prompt}]
        )
        assert alone == ours
