"""Logging, configured once at the edge: JSON lines for a pod or a pipe, a live display for a terminal.

The rooms only log events. Each goes to the chunks that are kept beside the run, and to one of two renderers.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

from job.redaction import blanked, secrets_of


class Renderer(Protocol):
    """Shows one event."""

    def show(self, level: str, event: dict[str, Any]) -> None:
        """Shows it; `level` is debug, info, warning or error."""
        ...


class LogBuffer:
    """The lines that no chunk holds yet."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def add(self, line: str) -> None:
        """Keeps one line."""
        with self._lock:
            self._lines.append(line)

    def take(self) -> bytes:
        """All lines since the last call."""
        with self._lock:
            lines, self._lines = self._lines, []
        return "".join(f"{line}\n" for line in lines).encode()


class JsonLines:
    """JSON lines on a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, level: str, event: dict[str, Any]) -> None:
        if level != "debug":
            with contextlib.suppress(BrokenPipeError):  # whoever read it has gone; the run goes on
                self._stream.write(_line(event) + "\n")
                self._stream.flush()


def configure(renderer: Renderer, environment: Mapping[str, str] = os.environ) -> LogBuffer:
    """Sends every event to the renderer and, but for debug ones, to the buffer that it returns.

    Values of secret-looking variables are blanked wherever they appear.
    """
    buffer = LogBuffer()
    secrets = secrets_of(environment)

    def render(_: WrappedLogger, level: str, event: EventDict) -> str:
        facts = _without(secrets, dict(event))
        renderer.show(level, facts)
        if level != "debug":
            buffer.add(_line(facts))
        raise structlog.DropEvent

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            structlog.processors.format_exc_info,
            render,
        ],
        cache_logger_on_first_use=False,
    )
    return buffer


def _line(event: dict[str, Any]) -> str:
    return json.dumps(event, default=str, ensure_ascii=False)


def _without(secrets: list[str], event: dict[str, Any]) -> dict[str, Any]:
    """The event with every secret blanked, at any depth."""
    if not secrets:
        return event
    as_written = [json.dumps(secret, ensure_ascii=False)[1:-1] for secret in secrets]
    safe: dict[str, Any] = json.loads(blanked(_line(event), as_written))
    return safe


def choose_renderer() -> Renderer:
    """A live display on a terminal, JSON lines anywhere else."""
    if sys.stdout.isatty() and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from job.display import Display

        return Display()
    return JsonLines(sys.stdout)
