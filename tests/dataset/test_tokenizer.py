import json
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.contract.errors import ConfigError, DataError
from job.dataset.tokenizer import Tokenizer, load_tokenizer, messages_of, template_names
from tests.dataset.conftest import DAY, FAMILIES, FAMILY_OF, Family, write_tokenizer

_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | keys))


def test_every_template_has_a_tested_family() -> None:
    assert {name for name in template_names() if name not in FAMILY_OF} == {
        "llama-3.2",
        "llama-3.3",
        "phi-3.5",
        "gemma-2",
    }


@pytest.mark.parametrize("template", FAMILY_OF)
def test_stop_tokens(load: Callable[..., Tokenizer], template: str) -> None:
    tokenizer = load(template)
    family = FAMILIES[FAMILY_OF[template]]
    assert tokenizer.decode(tokenizer.stop_token_ids[:1]) == tokenizer.eos_token == family.eos
    assert tokenizer.bos_token == family.bos
    prompt = tokenizer.encode(tokenizer.render(messages_of("Hello"), add_generation_prompt=True))
    assert tokenizer.turns.stop not in tokenizer.decode(prompt[-1:])
    assert not tokenizer.decode(prompt).startswith(f"{family.bos}{family.bos}")


def test_stop_tokens_of_the_generation_config(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, FAMILIES["llama-3-base"])
    ids = {
        token: load_tokenizer(tmp_path, "llama-3", DAY).backend.token_to_id(token)
        for token in FAMILIES["llama-3-base"].tokens
    }
    assert load_tokenizer(tmp_path, "llama-3", DAY).stop_token_ids == (ids["<|end_of_text|>"], ids["<|eot_id|>"])
    change(tmp_path / "generation_config.json", eos_token_id=[ids["<|eot_id|>"], ids["<|python_tag|>"]])
    assert load_tokenizer(tmp_path, "llama-3", DAY).stop_token_ids == (
        ids["<|end_of_text|>"],
        ids["<|eot_id|>"],
        ids["<|python_tag|>"],
    )


def test_the_models_own_template_wherever_it_stands(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, FAMILIES["chatml"], "in the config " + _CHATML)
    assert load_tokenizer(tmp_path, None, DAY).chat_template.startswith("in the config")
    templates = [{"name": "tool_use", "template": "?"}, {"name": "default", "template": "of a list " + _CHATML}]
    change(tmp_path / "tokenizer_config.json", chat_template=templates)
    assert load_tokenizer(tmp_path, None, DAY).chat_template.startswith("of a list")
    (tmp_path / "chat_template.jinja").write_text("a file " + _CHATML)
    assert load_tokenizer(tmp_path, None, DAY).chat_template.startswith("a file")
    (tmp_path / "mine.jinja").write_text("mine " + _CHATML)
    assert load_tokenizer(tmp_path, str(tmp_path / "mine.jinja"), DAY).chat_template.startswith("mine")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_tokenizer(tmp_path, str(tmp_path / "gone.jinja"), DAY)
    with pytest.raises(ConfigError, match="did you mean chatml"):
        load_tokenizer(tmp_path, "chat-ml", DAY)


def test_a_template_sees_the_configs_date(tokenizer_directory: Callable[[str], Path]) -> None:
    tokenizer = load_tokenizer(tokenizer_directory("llama-3"), "llama-3.1", date(2031, 2, 3))
    assert "Today Date: 03 February 2031\n" in tokenizer.render(messages_of("Hello"))


def test_what_would_change_a_row_in_tokenizer_json_is_left_out(tmp_path: Path) -> None:
    plain = load_tokenizer(write_tokenizer(tmp_path, FAMILIES["chatml"]), "chatml", DAY)
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    change(
        tmp_path / "tokenizer.json",
        truncation=truncation,
        padding={
            "strategy": {"Fixed": 99},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "!",
        },
        post_processor={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    )
    text = plain.render(messages_of("Hello, who are you?"))
    assert load_tokenizer(tmp_path, "chatml", DAY).encode(text) == plain.encode(text)


@pytest.mark.parametrize(
    ("family", "template", "message"),
    [
        (Family("<s>", "<s>", ("<s>", "<|im_end|>")), "{{ bos_token }}" + _CHATML, "which is also the token that ends one"),
        (Family("<s>", "</s>", ("<s>", "</s>")), "{{ bos_token + bos_token }}{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}", "twice"),
        (Family(None, "<|im_end|>", ("<|im_end|>",)), "{% for m in messages %}{{ m.role + m.content }}{% endfor %}", "no token that can stop"),
        (Family(None, "<|im_start|>", ("<|im_start|>", "<|im_end|>")), _CHATML, "opens the assistant's turn with '<|im_start|>'"),
        (Family(None, "</s>", ("</s>",)), _CHATML, "ends the assistant's turn with '<|im_end|>"),
        (Family(None, "</s>", ("</s>",)), "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", "opens the assistant's turn with '</s>'"),
        (Family(None, "</s>", ("</s>",)), "{% for m in messages|reverse %}{{ m.content + eos_token }}{% endfor %}", "in their order"),
        (Family(None, "</s>", ("</s>",)), "{{ raise_exception('no') }}", "cannot write questions and answers"),
    ],
)  # fmt: skip
def test_template_and_special_tokens_must_agree(tmp_path: Path, family: Family, template: str, message: str) -> None:
    write_tokenizer(tmp_path, family, template)
    with pytest.raises(DataError) as raised:
        load_tokenizer(tmp_path, None, DAY)
    assert message in raised.value.message


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path, "chatml", DAY)
    write_tokenizer(tmp_path, FAMILIES["chatml"])
    change(tmp_path / "tokenizer_config.json", added_tokens_decoder={"9": {"content": "<|im_end|>"}})
    with pytest.raises(DataError, match="the id 9"):
        load_tokenizer(tmp_path, "chatml", DAY)
    change(tmp_path / "tokenizer_config.json", added_tokens_decoder={}, eos_token="<|gone|>")
    with pytest.raises(DataError, match="vocabulary lacks"):
        load_tokenizer(tmp_path, "chatml", DAY)
    change(tmp_path / "tokenizer_config.json", eos_token=None)
    with pytest.raises(DataError, match="no eos_token"):
        load_tokenizer(tmp_path, "chatml", DAY)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(DataError, match=r"tokenizer\.json of the base model cannot be read"):
        load_tokenizer(tmp_path, "chatml", DAY)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        load_tokenizer(tmp_path, "chatml", DAY)


def test_special_tokens_map_of_old_models(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, FAMILIES["chatml"])
    change(tmp_path / "tokenizer_config.json", eos_token=None)
    change(tmp_path / "special_tokens_map.json", eos_token={"content": "<|im_end|>", "lstrip": False})
    assert load_tokenizer(tmp_path, "chatml", DAY).eos_token == "<|im_end|>"


_KEYS = st.sampled_from(
    ["added_tokens_decoder", "chat_template", "eos_token", "bos_token", "name", "content", "eos_token_id", "2"]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("<|im_end|>"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=30)
@given(config=st.dictionaries(_KEYS, _JSON), generation=st.dictionaries(_KEYS, _JSON))
def test_any_config_is_a_tokenizer_or_an_error_of_ours(
    tokenizer_directory: Callable[[str], Path], config: dict[str, Any], generation: dict[str, Any]
) -> None:
    with TemporaryDirectory() as directory:
        path = Path(directory)
        (path / "tokenizer.json").write_bytes((tokenizer_directory("chatml") / "tokenizer.json").read_bytes())
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        (path / "generation_config.json").write_text(json.dumps(generation))
        for template in ("chatml", None):
            with suppress(DataError, ConfigError):
                tokenizer = load_tokenizer(path, template, DAY)
                assert all(isinstance(token, int) for token in tokenizer.stop_token_ids)
