"""What a person at a terminal sees: one bar for what is going on, and lines above it for what has happened."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_COLOURS = {"warning": "yellow", "error": "red"}
# A child's own chatter: kept in the log, of no use to someone who watches.
_UNSEEN = frozenset({"said", "heartbeat"})


class Display:
    """Draws log events. Bars follow `step`, `moved` and `exporting`; everything else is a line."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("[bold]{task.description:>9}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._is_streaming = False

    def show(self, level: str, event: dict[str, Any]) -> None:
        """Draws one event."""
        name = str(event["event"])
        if name in _UNSEEN:
            return
        if name == "answer text":
            self._stream(event["text"])
        elif name == "step":
            self._bar("train", event["step"], event["of"], _training(event))
        elif name == "moved":
            done, total = event["bytes"], event["of_bytes"]
            self._bar(
                event["what"], done, total, f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {event['mb_per_second']} MB/s"
            )
        elif name == "exporting":
            self._bar("export", event["step"] - 1, event["of"], escape(event["what"]))
        elif name == "shown row":
            self._row(event["spans"])
        elif level != "debug":
            self._line(level, name, event)

    def _stream(self, text: str) -> None:
        self._end_bar()
        self.console.print(escape(text), end="", style="cyan")
        self._is_streaming = True

    def _bar(self, what: str, done: float, total: float, facts: str) -> None:
        self._end_stream()
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(what, total=total, facts=facts)
        self._progress.update(self._task, description=what, completed=done, total=total, facts=facts)

    def _row(self, spans: list[tuple[str, str]]) -> None:
        """A row with what is trained on in colour."""
        self._end_bar()
        self.console.print("[bold]shown row[/]  [dim]masked[/]  [green]trained on[/]")
        for text, kind in spans:
            self.console.print(escape(text), end="", style="green" if kind == "trained on" else "dim")
        self.console.print()

    def _line(self, level: str, name: str, event: dict[str, Any]) -> None:
        self._end_stream()
        if name.startswith("stage"):
            self._end_bar()
        left_out = ("event", "level", "at", "run_id", "attempt")
        facts = "  ".join(f"[dim]{key}[/] {escape(str(value))}" for key, value in event.items() if key not in left_out)
        colour = _COLOURS.get(level, "bold" if name.startswith("stage") else "default")
        self.console.print(f"[{colour}]{escape(name)}[/]  {facts}")

    def _end_stream(self) -> None:
        if self._is_streaming:
            self.console.print()
        self._is_streaming = False

    def _end_bar(self) -> None:
        if self._task is not None:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


def _training(event: dict[str, Any]) -> str:
    eta = round(event["eta_seconds"])
    return (
        f"{event['step']}/{event['of']}  loss {event['loss']:.4f}  lr {event['learning_rate']:.2g}  "
        f"{event['tokens_per_second']:,.0f} tok/s  {eta // 60}:{eta % 60:02} left"
    )
