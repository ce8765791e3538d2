"""A config's text to a `RunConfig`, or all of its problems at once, each with its dotted path and its line."""

import difflib
import re
from dataclasses import dataclass
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from job.contract.config import RunConfig
from job.contract.errors import ConfigError

MAX_CONFIG_BYTES = 1_048_576
_MAX_DEPTH = 32

# What people paste by mistake: AWS access key ids, Hugging Face, GitHub, OpenAI and W&B style tokens, PEM keys, URL passwords.
_SECRET = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|://[^/\s:@]+:[^/\s@]+@"
)


@dataclass(frozen=True)
class Problem:
    """One thing wrong: the dotted path of its key, its line in the file (0: none) and what."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        where = f"line {self.line}" if self.line else "config"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class InvalidConfig(ConfigError):
    """A config that cannot be used.

    Args:
        source: the file's name, as the user gave it.
        problems: everything wrong with it.
    """

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{source} has {count}:\n{lines}", "Mend the lines named; docs/config.md lists every key.")


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types only: `no` stays a string, `1e-4` is a number, dates stay strings."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)

_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map"))


def parse_config(text: str | bytes, source: str) -> RunConfig:
    """The config that a YAML text holds.

    Args:
        text: the file's content; bytes must be UTF-8.
        source: its name, for messages.

    Raises:
        InvalidConfig: naming every problem.
    """
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise InvalidConfig(source, [Problem("", 0, f"not UTF-8 at byte {error.start}")]) from error
    if len(text) > MAX_CONFIG_BYTES:
        raise InvalidConfig(source, [Problem("", 0, f"larger than {MAX_CONFIG_BYTES} bytes")])
    if problems := _secrets(text):  # before anything is quoted in a message
        raise InvalidConfig(source, problems)
    lines: dict[str, int] = {}
    value = _value(_compose(text, source), "", lines, problems)
    if not isinstance(value, dict):
        raise InvalidConfig(source, problems or [Problem("", 1, "must be a mapping of keys to values")])
    config = None
    try:
        config = RunConfig.model_validate(value)
    except ValidationError as error:
        problems += _problems(error, lines)
    if problems or config is None:
        raise InvalidConfig(source, sorted(problems, key=lambda problem: (problem.line, problem.path)))
    return config


def line_of(path: str, text: bytes, source: str) -> int:
    """The line of a dotted path in a config that has been parsed, or of the nearest key above it; 0 where there is neither."""
    lines: dict[str, int] = {}
    _value(_compose(text.decode("utf-8-sig"), source), "", lines, [])
    return _line(path, lines)


def _secrets(text: str) -> list[Problem]:
    """The lines that hold what looks like a secret, comments included: the file is kept with the run as it is."""
    return [
        Problem(
            "", line, f"looks like a secret ({found.group()[:4]}…): secrets come from the environment or the cluster"
        )
        for line, content in enumerate(text.splitlines(), 1)
        if (found := _SECRET.search(content))
    ]


def _compose(text: str, source: str) -> yaml.Node | None:
    """The text's node tree; tags, aliases and deep nesting are refused before anything is built from them."""
    problems: list[Problem] = []
    try:
        depth = 0
        for event in yaml.parse(text, Loader=_Loader):
            line = _line_of(event)
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                problems.append(Problem("", line, "YAML anchors and aliases are not supported: write the value out"))
            elif getattr(event, "tag", None):
                problems.append(Problem("", line, f"YAML tags are not supported: {getattr(event, 'tag', '')}"))
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                problems.append(Problem("", line, f"nested deeper than {_MAX_DEPTH} levels"))
                break
        if problems:
            raise InvalidConfig(source, problems)
        return yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise InvalidConfig(source, [Problem("", mark.line + 1 if mark else 0, f"not YAML: {what}")]) from error


def _line_of(thing: yaml.Event | yaml.Node) -> int:
    return thing.start_mark.line + 1 if thing.start_mark else 0


def _value(node: yaml.Node | None, path: str, lines: dict[str, int], problems: list[Problem]) -> Any:
    """The Python value of a node; notes the line of each path, and duplicate keys as problems."""
    if node is None:
        return None
    lines[path] = _line_of(node)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, f"{path}.{i}", lines, problems) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line_of(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(Problem(path, line, "a key must be a plain word"))
                continue
            key = str(key_node.value)
            inner = f"{path}.{key}" if path else key
            if key in result:
                problems.append(Problem(inner, line, f"given twice, first in line {lines[inner]}"))
                continue
            result[key] = _value(value_node, inner, lines, problems)
            lines[inner] = line
        return result
    if node.tag not in _PLAIN_TAGS:
        problems.append(Problem(path, lines[path], f"YAML tags are not supported: {node.tag}"))
        return None
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except ValueError as error:  # Python refuses integers of more than 4,300 digits
        problems.append(Problem(path, lines[path], str(error).split(";")[0]))
        return None


def _problems(error: ValidationError, lines: dict[str, int]) -> list[Problem]:
    """Pydantic's errors in the user's words; the branches of a union come as one problem."""
    by_path: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False):
        path, known = _user_path(detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            close = difflib.get_close_matches(path.rsplit(".", 1)[-1], known, n=1)
            message = (
                f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known are {', '.join(known)}"
            )
        elif detail["type"] == "missing":
            message = "is required"
        elif detail["type"] != "value_error":
            message = f"{message[0].lower()}{message[1:]} (it is {detail['input']!r:.60})"
        by_path.setdefault(path, []).append(message)
    return [
        Problem(path, _line(path, lines), " or ".join(dict.fromkeys(messages))) for path, messages in by_path.items()
    ]


def _user_path(loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """A pydantic location as the user's dotted path, without the names of union branches, and the keys known at its parent."""
    parts: list[str] = []
    model: type[BaseModel] | None = RunConfig
    known: list[str] = []
    for item in loc:
        if isinstance(item, int):
            parts.append(str(item))
        elif model is not None:
            known = list(model.model_fields)
            parts.append(item)
            field = model.model_fields.get(item)
            model = next((kind for kind in _kinds(field.annotation if field else None) if _is_model(kind)), None)
    return ".".join(parts), known


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) or (annotation,)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _line(path: str, lines: dict[str, int]) -> int:
    """The line of a path, or of the nearest key above it."""
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines.get(path, 0) if path else 0
