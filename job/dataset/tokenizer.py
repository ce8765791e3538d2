"""A base model's tokenizer and chat template, without transformers.

The ids are those of `apply_chat_template(tokenize=True)`: the template's text, encoded without any token added to it. The
vocabulary is never edited. What the template and the special tokens must agree on is asserted when they are loaded.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import tokenizers

from job.contract.errors import ConfigError, DataError
from job.dataset.template import Message, Render, compile_template, try_out
from job.dataset.turns import CHAT, Turns, derive_turns

TEMPLATES = Path(__file__).with_name("templates")
"""Holds ours, one file for each name."""
_ALIASES = {"llama-3.2": "llama-3.1", "llama-3.3": "llama-3.1", "phi-3.5": "phi-3", "gemma-2": "gemma"}
_CHECKED = ("bos_token", "eos_token", "pad_token")
_TEMPLATE_KEY = "The config's key chat_template takes"
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_CALLS: tuple[dict[str, Any], ...] = (  # what a template is asked to render before it is trusted
    {"messages": CHAT},
    {"messages": CHAT[:1]},
    {"messages": CHAT[:1], "add_generation_prompt": True},
    {"messages": ({"role": "system", "content": "s"}, CHAT[0])},
    {"messages": CHAT, "tools": [_TOOL]},
    {"messages": (*CHAT[:2], {"role": "tool", "content": "t"}, CHAT[1])},
    {"messages": (*CHAT[:2], {"role": "system", "content": "t"}, CHAT[1])},
)


def template_names() -> list[str]:
    """The names that `chat_template` can have."""
    return sorted([path.stem for path in TEMPLATES.glob("*.jinja")] + list(_ALIASES))


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that renders chats."""

    backend: tokenizers.Tokenizer
    chat_template: str
    """The template's text."""
    special_tokens: dict[str, str]
    """By the name that templates know them by, such as `bos_token`."""
    turns: Turns
    render: Render
    """`render(messages, tools=None, add_generation_prompt=False)`: the chat's text. Raises any of `RENDER_ERRORS`."""
    control: re.Pattern[str]
    """Finds a token that makes up turns, which no message may hold."""
    shows_tools: bool
    """Whether the template writes a chat's `tools`."""
    shows_tool_turns: bool
    """Whether a turn of the role `tool` looks different from a system turn."""
    stop_token_ids: tuple[int, ...]
    """The tokens that end an answer, eos first: it, those of generation_config.json, and the template's own."""

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str:
        """The token that ends a text."""
        return self.special_tokens["eos_token"]

    @property
    def eos_token_id(self) -> int:
        """Its id."""
        return self.stop_token_ids[0]

    @cached_property
    def longest_token(self) -> int:
        """The length of the longest token, in characters."""
        return max(map(len, self.backend.get_vocab()))

    def encode(self, text: str) -> list[int]:
        """The ids of a rendered text; nothing is added to it."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """The ids and character offsets of rendered texts, on all cores."""
        return list(self.backend.encode_batch(texts, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return str(self.backend.decode(list(ids), skip_special_tokens=False))


def load_tokenizer(directory: Path, chat_template: str | None, day: date) -> Tokenizer:
    """The tokenizer of a base model's directory.

    Args:
        directory: holds tokenizer.json and what stands beside it.
        chat_template: None for the model's own, the name of one of ours, or a `.jinja` file.
        day: what templates that print today's date see.

    Raises:
        ConfigError: there is no such template, or none at all.
        DataError: the files, or the template, cannot be used; or they do not fit each other.
    """
    config = _json(directory / "tokenizer_config.json")
    backend = _backend(directory / "tokenizer.json", config)
    special_tokens = _special_tokens(directory, config, backend)
    text, source = _template_text(directory, config, chat_template)
    added = {token.content: token.special for token in backend.get_added_tokens_decoder().values()}
    eos = special_tokens["eos_token"]
    try:
        chat, question, prompt, system, with_tools, tool_turn, system_turn = try_out(text, day, special_tokens, _CALLS)
        if chat is None or question is None:
            raise ValueError("it cannot write questions and answers in turn")
        turns = derive_turns(chat, question, eos, list(added))
        _assert_bos(backend, special_tokens, chat)
    except ValueError as error:
        raise DataError(
            f"{source} cannot be used as a chat template: {error}",
            f"{_TEMPLATE_KEY} another: {', '.join(template_names())}, or a .jinja file.",
        ) from error
    written = "".join(filter(None, (chat, question, prompt, system)))
    control = {token for token, special in added.items() if special and token in written}
    control |= {token for token in added if token in turns.header + turns.ending}
    control |= {special_tokens[name] for name in _CHECKED if special_tokens.get(name) in added}
    return Tokenizer(
        backend=backend,
        chat_template=text,
        special_tokens=special_tokens,
        turns=turns,
        render=compile_template(text, day, special_tokens),
        control=re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True)))),
        shows_tools=with_tools is not None and with_tools != chat,
        shows_tool_turns=tool_turn is not None and tool_turn != system_turn,
        stop_token_ids=_stop_token_ids(directory, backend, eos, turns.stop),
    )


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no such file."""
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except orjson.JSONDecodeError as error:
        raise DataError(f"{path.name} of the base model is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path.name} of the base model is not a JSON object")
    return value


def _backend(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of tokenizer.json, without what would cut, pad or add to a text, or shorten its offsets."""
    if not path.is_file():
        raise DataError(
            "the base model has no tokenizer.json",
            "Save its tokenizer with a recent transformers, which writes one.",
        )
    definition = _json(path) | {"truncation": None, "padding": None, "post_processor": None}
    try:
        backend = tokenizers.Tokenizer.from_str(orjson.dumps(definition).decode())
    except Exception as error:  # the library raises no narrower one
        raise DataError(f"tokenizer.json of the base model cannot be read: {error}") from error
    try:
        added = {
            int(index): str(token["content"]) for index, token in (config.get("added_tokens_decoder") or {}).items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError("tokenizer_config.json of the base model has added_tokens_decoder in no known shape") from error
    for index, content in added.items():
        if backend.token_to_id(content) != index:
            raise DataError(
                f"tokenizer_config.json gives {content!r} the id {index}, tokenizer.json does not",
                "The two are not of one tokenizer: save it anew.",
            )
    return backend


def _special_tokens(directory: Path, config: dict[str, Any], backend: tokenizers.Tokenizer) -> dict[str, str]:
    """The special tokens by name, as transformers hands them to a template; eos is among them, and in the vocabulary."""
    legacy = {} if "added_tokens_decoder" in config else _json(directory / "special_tokens_map.json")
    found: dict[str, str] = {}
    for name, token in (config | legacy).items():
        content = token.get("content") if isinstance(token, dict) else token
        if not name.endswith("_token") or not isinstance(content, str):
            continue
        if name in _CHECKED and backend.token_to_id(content) is None:
            raise DataError(f"the base model's {name} is {content!r}, which its vocabulary lacks")
        found[name] = content
    if "eos_token" not in found:
        raise DataError("the base model's tokenizer has no eos_token", "Name it in its tokenizer_config.json.")
    return found


def _template_text(directory: Path, config: dict[str, Any], chosen: str | None) -> tuple[str, str]:
    """The template's text, and what to call it."""
    if chosen is None:
        if text := _own_template(directory, config):
            return text, "the base model's own chat_template"
        raise ConfigError(
            "the base model has no chat template, and chat_template is null",
            f"{_TEMPLATE_KEY} one of {', '.join(template_names())}, or a .jinja file.",
        )
    if chosen.endswith(".jinja"):
        try:
            return Path(chosen).read_text(encoding="utf-8"), chosen
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"chat_template: {chosen} cannot be read: {error}") from error
    path = TEMPLATES / f"{_ALIASES.get(chosen, chosen)}.jinja"
    if chosen not in template_names():
        close = difflib.get_close_matches(chosen, template_names(), n=1)
        raise ConfigError(
            f"chat_template: there is no template {chosen!r}" + (f"; did you mean {close[0]}?" if close else ""),
            f"{_TEMPLATE_KEY} one of {', '.join(template_names())}, or a .jinja file.",
        )
    return path.read_text(encoding="utf-8"), f"chat_template {chosen}"


def _own_template(directory: Path, config: dict[str, Any]) -> str | None:
    """The model's default template: a file beside the tokenizer, else what tokenizer_config.json holds."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"chat_template.jinja of the base model is not UTF-8: {error}") from error
    template = config.get("chat_template") or _json(directory / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = (entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default")
        template = next(named, {}).get("template")
    return template if isinstance(template, str) else None


def _assert_bos(backend: tokenizers.Tokenizer, special_tokens: dict[str, str], chat: str) -> None:
    """A text begins with one bos at most, and bos is not eos where it begins with one."""
    bos = special_tokens.get("bos_token")
    if bos is None or not chat.startswith(bos):
        return
    if bos == special_tokens["eos_token"]:
        raise ValueError(f"it begins a text with {bos!r}, which is also the token that ends one")
    if backend.encode(chat, add_special_tokens=False).ids[:2] == [backend.token_to_id(bos)] * 2:
        raise ValueError(f"it begins a text with {bos!r} twice")


def _stop_token_ids(directory: Path, backend: tokenizers.Tokenizer, eos: str, turn_end: str) -> tuple[int, ...]:
    """eos, what generation_config.json says, and the token that ends a turn."""
    named = _json(directory / "generation_config.json").get("eos_token_id")
    listed = [named] if isinstance(named, int) else named if isinstance(named, list) else []
    ids = [backend.token_to_id(eos), *listed, backend.token_to_id(turn_end)]
    return tuple(dict.fromkeys(index for index in ids if isinstance(index, int)))


def messages_of(prompt: str) -> list[Message]:
    """A prompt as a chat of one user turn."""
    return [{"role": "user", "content": prompt}]
