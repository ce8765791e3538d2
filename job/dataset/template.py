"""A chat template: untrusted Jinja text that turns a chat into the text a model reads.

It renders as transformers does (5.17, `utils/chat_template_utils.py`): the same immutable sandbox, block trimming, loop
controls, `generation` tag, `tojson`, `raise_exception` and `strftime_now`, which here sees the config's date.

A sandbox keeps a template from Python's insides; it does not keep it from looping for ever or filling the memory.
So a template is first tried by `try_out`, which runs this very file as a process of its own under limits.
Standard library and jinja2 only, so that the process starts in a fraction of a second.
"""

import contextlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import Undefined, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_CPU_SECONDS = 2
_WALL_SECONDS = 60  # a busy machine may give the process little of a core
_MEMORY_BYTES = 1 << 30
_OUTPUT_BYTES = 1 << 20

Message = dict[str, Any]
Render = Callable[..., str]
"""`render(messages, tools=None, add_generation_prompt=False)`; raises what a template can raise, see `RENDER_ERRORS`."""

# What a template's own text can make Python raise: its errors, and those of the operators and filters it uses.
RENDER_ERRORS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for transformers. Here it only is, as there, a scope of its own."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, which raises where a template only looks at what it must not touch."""

    def unsafe_undefined(self, obj: object, attribute: str) -> Undefined:
        raise SecurityError(f"the attribute {attribute} of {type(obj).__name__}")


def compile_template(text: str, day: date, special_tokens: Mapping[str, str]) -> Render:
    """The function that renders chats by this template.

    Args:
        text: the template.
        day: what `strftime_now` takes for today.
        special_tokens: `bos_token`, `eos_token` and the like, as the template names them.

    Raises:
        jinja2.TemplateSyntaxError: when the text is no template.
    """

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = tojson  # jinja's own escapes HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = datetime.combine(day, time.min).strftime
    template = environment.from_string(text)

    def render(
        messages: Sequence[Message], tools: Sequence[Any] | None = None, add_generation_prompt: bool = False
    ) -> str:
        return template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )

    return render


def try_out(
    text: str, day: date, special_tokens: Mapping[str, str], calls: Sequence[Mapping[str, Any]]
) -> list[str | None]:
    """What the template makes of each call, in a process of its own with 2 s of a core and 1 GiB of memory.

    Args:
        text: the template.
        day: what `strftime_now` takes for today.
        special_tokens: as the template names them.
        calls: keyword arguments of `Render`.

    Returns:
        The text of each call, None where the template refuses that call.

    Raises:
        ValueError: saying what is wrong with the template itself.
        RuntimeError: the process could not do its work.
    """
    job = {"text": text, "day": day.isoformat(), "special_tokens": dict(special_tokens), "calls": list(calls)}
    try:
        done = subprocess.run(
            [sys.executable, "-I", Path(__file__)],
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"it does not end within {_WALL_SECONDS} s") from error
    if done.returncode < 0 or b"MemoryError" in done.stderr:
        raise ValueError(f"it does not end within {_CPU_SECONDS} s of a core or {_MEMORY_BYTES >> 20} MiB of memory")
    if done.returncode:  # nothing of the template's
        raise RuntimeError(f"trying the template out failed: {done.stderr.decode('utf-8', 'replace')[-500:]}")
    answer = json.loads(done.stdout)
    if "problem" in answer:
        raise ValueError(answer["problem"])
    rendered: list[str | None] = answer["rendered"]
    return rendered


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    """The other side of `try_out`."""
    try:
        render = compile_template(job["text"], date.fromisoformat(job["day"]), job["special_tokens"])
    except jinja2.TemplateSyntaxError as error:
        return {"problem": f"line {error.lineno}: {error.message}"}
    rendered: list[str | None] = []
    for call in job["calls"]:
        try:
            text = render(**call)
            text.encode()  # a template can write half a character, which no tokenizer takes
            rendered.append(text)
        except SecurityError as error:
            return {"problem": f"it reaches for what a template must not touch: {error}"}
        except (MemoryError, OverflowError, RecursionError) as error:
            return {"problem": f"it asks for too much: {error!r}"}
        except RENDER_ERRORS:
            rendered.append(None)
    if sum(len(text) for text in rendered if text) > _OUTPUT_BYTES:
        return {"problem": f"it writes more than {_OUTPUT_BYTES} characters for a few short messages"}
    return {"rendered": rendered}


def main() -> int:
    """Read one job from stdin and write the answer to stdout, under the limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    with contextlib.suppress(ValueError):  # a lower limit stands already
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    sys.stdout.write(json.dumps(_answer(json.loads(sys.stdin.buffer.read()))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
