"""From a config's text to a `RunConfig`, or to every problem at once."""

import textwrap
from contextlib import suppress
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from job.contract.config import RunConfig
from job.contract.config_file import MAX_CONFIG_BYTES, InvalidConfig, parse_config
from job.contract.exits import Exit
from job.contract.model import canonical_bytes

SMALLEST = """
name: support-bot
base_model: s3://models/base/
dataset:
  train: s3://data/train.jsonl
training:
  max_steps: 60
"""


def config(**changes: Any) -> str:
    """The smallest config with keys set: `training__learning_rate=0`."""
    value = yaml.safe_load(SMALLEST)
    for path, setting in changes.items():
        *parents, key = path.split("__")
        place = value
        for parent in parents:
            place = place.setdefault(parent, {})
        place[key] = setting
    return yaml.safe_dump(value, sort_keys=False)


def problems(text: str | bytes) -> list[str]:
    """What is wrong with it, as the user reads it."""
    with pytest.raises(InvalidConfig) as refused:
        parse_config(text, "my.yaml")
    assert refused.value.code == Exit.CONFIG
    assert refused.value.message.startswith("my.yaml has ")
    assert refused.value.resolution
    return [str(problem) for problem in refused.value.problems]


def parsed(text: str) -> RunConfig:
    return parse_config(text, "my.yaml")


def test_the_smallest_config_gets_the_reference_runs_values() -> None:
    small = parsed(SMALLEST)
    assert (small.max_seq_length, small.lora.r, small.training.learning_rate) == (2048, 16, 2e-4)
    assert small.export.gguf == ("f16",)


def test_all_problems_are_told_at_once_with_path_and_line() -> None:
    text = textwrap.dedent("""\
        name: Support Bot
        base_model: s3://models/base/
        dataset:
          train: s3://data/train.jsonl
          format: csv
        lora:
          r: 0
        training:
          max_steps: 60
          learning_rat: 1e-4
        """)
    told = problems(text)
    assert [line.split(": ")[:2] for line in told] == [
        ["line 1", "name"],
        ["line 5", "dataset.format"],
        ["line 7", "lora.r"],
        ["line 10", "training.learning_rat"],
    ]
    assert "did you mean learning_rate?" in told[3]


def test_a_missing_key_is_named() -> None:
    assert problems("name: a\nbase_model: /b\ntraining: {max_steps: 1}\n") == ["config: dataset: is required"]


def test_a_key_of_a_list_item_is_told_with_its_line() -> None:
    text = SMALLEST + "export:\n  gguf:\n    - f16\n    - q4_k_x\n"
    (told,) = problems(text)
    assert told.startswith("line 11: export.gguf.1: ")
    assert "q4_k_m" in told


def test_an_unknown_key_without_a_twin_gets_the_list() -> None:
    (told,) = problems(config(samples={"zzz": 1}))
    assert "known are prompts, max_new_tokens" in told


def test_exactly_one_of_steps_and_epochs() -> None:
    assert "exactly one" in problems(config(training={}))[0]
    assert "exactly one" in problems(config(training__num_train_epochs=1))[0]
    assert parsed(config(training={"num_train_epochs": 0.5})).training.num_train_epochs == 0.5


def test_a_cpu_is_asked_for_in_so_many_words() -> None:
    (told,) = problems(config(compute__gpus=0))
    assert "dtype: float32" in told
    assert "load_in_4bit: false" in told
    assert parsed(config(compute__gpus=0, dtype="float32", load_in_4bit=False)).compute.gpus == 0


def test_a_date_is_a_date() -> None:
    assert parsed(SMALLEST + "chat_template_date: 2026-01-31\n").chat_template_date.isoformat() == "2026-01-31"
    assert len(problems(SMALLEST + "chat_template_date: 31\n")) == 1


@pytest.mark.parametrize("text", ["", "  \n", "- a list\n", "just a word", "42", "null", "# a comment\n"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert "must be a mapping" in problems(text)[0]


def test_bytes_are_utf_8_with_or_without_a_mark() -> None:
    assert parse_config(b"\xef\xbb\xbf" + SMALLEST.encode(), "my.yaml") == parsed(SMALLEST)
    assert "not UTF-8 at byte 2" in problems(b"a:\xff")[0]


def test_a_huge_file_is_refused() -> None:
    assert "larger than" in problems("#" * (MAX_CONFIG_BYTES + 1))[0]


def test_a_deep_file_is_refused() -> None:
    assert "nested deeper" in problems("[" * 10_000)[0]


def test_broken_yaml_is_told_with_its_line() -> None:
    assert problems("name: a\n\tbase_model: b\n")[0].startswith("line 2: not YAML")


def test_41_aliases_anchors_and_tags_are_refused() -> None:
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
    assert all("anchors and aliases" in line for line in problems(bomb))
    assert "tags are not supported" in problems(SMALLEST + "lora: !!python/object:os.system {r: 1}\n")[0]
    assert "tags are not supported" in problems(SMALLEST + "lora: {r: !!int 8}\n")[0]


def test_42_a_key_given_twice_is_refused() -> None:
    told = problems("name: first\n" + SMALLEST.lstrip())
    assert told == ["line 2: name: given twice, first in line 1"]


def test_43_a_misspelt_key_is_refused() -> None:
    (told,) = problems(config(training__learning_rat=1e-4))
    assert told.endswith("training.learning_rat: unknown key; did you mean learning_rate?")


def test_44_a_number_is_a_number_and_no_is_a_word() -> None:
    text = SMALLEST + "  learning_rate: 1e-4\n"
    assert parsed(text).training.learning_rate == 1e-4
    assert parsed(SMALLEST.replace("support-bot", "no")).name == "no"
    assert len(problems(SMALLEST + "load_in_4bit: no\n")) == 1
    assert len(problems(SMALLEST + "  learning_rate: '1e-4'\n")) == 1


@pytest.mark.parametrize("rate", ["0", "-1", ".nan", ".inf", "1.5", "1e400"])
def test_45_a_learning_rate_that_cannot_train_is_refused(rate: str) -> None:
    (told,) = problems(SMALLEST + f"  learning_rate: {rate}\n")
    assert "training.learning_rate" in told


def test_46_a_rank_of_zero_and_no_modules_are_refused() -> None:
    told = problems(config(lora={"r": 0, "target_modules": []}))
    assert [line.split(": ")[1] for line in told] == ["lora.r", "lora.target_modules"]


def test_47_an_unknown_quantization_is_refused() -> None:
    (told,) = problems(config(export__gguf=["q4_k_x"]))
    assert "q4_k_m" in told


@pytest.mark.parametrize("name", ["a" * 64, "Support", "bot-", "-bot", "a bot", "a/b", "", "ü", "1bot", "a\n"])
def test_48_a_name_that_kubernetes_would_refuse_is_refused(name: str) -> None:
    (told,) = problems(config(name=name))
    assert "name: " in told


@pytest.mark.parametrize(
    "secret",
    [
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "hf_" + "abcdefghijklmnopqrstuvwxyz",
        "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
        "s3://user:" + "password@host/bucket/",
        "-----BEGIN RSA" + " PRIVATE KEY-----",
    ],
)
def test_49_a_secret_is_refused_with_its_line_and_not_repeated(secret: str) -> None:
    for text in (config(base_model=secret), config(name=secret), SMALLEST + f"# key: {secret}\n", f"{secret}: 1\n"):
        told = problems(text)
        assert "looks like a secret" in told[0]
        assert told[0].startswith("line ")
        assert secret not in "".join(told)


def test_50_a_branch_or_a_tag_of_the_base_is_allowed() -> None:
    """The spec freezes the commit."""
    assert parsed(config(base_model="hf://org/model@main")).base_model == "hf://org/model@main"


@given(st.text(max_size=300))
@example("a: 0777777777777777777777777777777777777\n")
@example("? [a, b]\n: c\n")
@example("a: " + "9" * 5000)
@example("\x00")
@example("<<: {a: 1}")
@example("=: 1")
def test_any_text_is_a_config_or_an_invalid_one(text: str) -> None:
    with suppress(InvalidConfig):
        parse_config(text, "any")


WORDS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=4)
)
VALUES = st.recursive(
    WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
KEYS = st.sampled_from([*RunConfig.model_fields, "learning_rate", "gguf"])


@given(st.dictionaries(KEYS, VALUES | st.dictionaries(KEYS, VALUES, max_size=4)))
def test_any_mapping_is_a_config_or_an_invalid_one(value: dict[str, Any]) -> None:
    with suppress(InvalidConfig):
        parse_config(yaml.safe_dump(value), "any")


def test_a_config_survives_its_canonical_form() -> None:
    first = parsed(config(lora__r=8, dataset__eval=0.1, compute__queue="gold"))
    assert parse_config(canonical_bytes(first), "again") == first
