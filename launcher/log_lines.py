"""What of a log is told: its lines, each once, and the gaps between them. Pure."""

import json
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime

_TIMED = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) ?(.*)", re.DOTALL)
_BLOCK_BYTES = 1024
_NANOSECONDS = 10**9
# Lines of stdout and of stderr may stand a little out of order in one log.
_OVERLAP_SECONDS = 1


@dataclass(frozen=True)
class LogLine:
    """One line."""

    source: str
    """The pod, or `attempt 2` where the line comes from the store."""
    time: str
    """RFC 3339; empty where it is not known."""
    text: str


@dataclass(frozen=True)
class Gap:
    """A place where lines may be missing."""

    source: str
    after: str
    """The time of the line before; empty when there is none."""
    before: str
    """The time of the line behind; empty when there is none."""
    why: str
    rest: str
    """Under what URI the store has what the job itself logged; empty where that is what is damaged."""

    @property
    def text(self) -> str:
        """All this in one sentence."""
        ends = [f"{word} {time}" for word, time in (("after", self.after), ("before", self.before)) if time]
        kept = f"; what the job itself logged is kept under {self.rest}" if self.rest else ""
        return f"lines{' '.join(['', *ends])} may be missing: {self.why}{kept}"


Told = LogLine | Gap


class Deduplicator:
    """The lines of a log that is read in several streams, each from shortly before the end of the one before.

    Lines that come again are dropped: those that equal a told one in time and text, and no more often than it was told.

    Args:
        source: the pod.
        rest: where the rest is kept, for a gap.
    """

    def __init__(self, source: str, rest: str) -> None:
        self._source, self._rest = source, rest
        self._since: int | None = None
        self._told: Counter[tuple[int, str]] = Counter()
        self._again: Counter[tuple[int, str]] = Counter()
        self._is_in_doubt = False
        self.last = ""
        """The time of the line that was told last."""

    @property
    def since(self) -> str | None:
        """From where the next stream is to be read, an RFC 3339 time in whole seconds; None for the beginning."""
        return f"{datetime.fromtimestamp(self._since, UTC):%Y-%m-%dT%H:%M:%SZ}" if self._since is not None else None

    def resume(self) -> None:
        """Another stream begins, at `since`."""
        self._again = self._told.copy()
        self._is_in_doubt = self._since is not None

    def take(self, line: bytes) -> list[Told]:
        """What is told of the next line of the stream: nothing, the line, or a gap and the line.

        As long as the log is whole, the first line of another stream is one that was told.
        """
        found = _TIMED.fullmatch(line.decode("utf-8", "replace"))
        if found is None:  # the end of a long line that began before `since`, else the kubelet's own word
            return [] if self._is_in_doubt else [LogLine(self._source, "", line.decode("utf-8", "replace"))]
        second, fraction, zone, text = found.groups()
        seconds = int(datetime.fromisoformat(second + zone).timestamp())
        key = (seconds * _NANOSECONDS + int((fraction or "").ljust(9, "0")), text)
        is_in_doubt, self._is_in_doubt = self._is_in_doubt, False
        if self._again[key]:
            self._again[key] -= 1
            return []
        time = found[0][: found.end(3)]
        gap = [Gap(self._source, self.last, time, "the log was rotated", self._rest)] if is_in_doubt else []
        self._keep(key, seconds)
        self.last = time
        return [*gap, LogLine(self._source, time, text)]

    def end(self, why: str = "") -> list[Gap]:
        """The gap behind the last line: for that reason, or because the last stream had nothing that was told."""
        if not why and self._is_in_doubt:
            why = "the log was rotated"
        return [Gap(self._source, self.last, "", why, self._rest)] if why else []

    def _keep(self, key: tuple[int, str], seconds: int) -> None:
        since = seconds - _OVERLAP_SECONDS
        if self._since is None or since > self._since:
            self._since = since
            self._told = Counter({old: n for old, n in self._told.items() if old[0] >= since * _NANOSECONDS})
        self._told[key] += 1


def chunk_lines(body: bytes, source: str, uri: str) -> list[Told]:
    """The lines of one chunk of the store, JSON with the time `at`, as far as it is sound, and a gap where it is not.

    Args:
        body: the chunk as it is stored.
        source: whose lines these are.
        uri: the chunk's.
    """
    unzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    sound = b""
    try:
        for start in range(0, len(body), _BLOCK_BYTES):
            sound += unzip.decompress(body[start : start + _BLOCK_BYTES])
    except zlib.error:
        pass
    *texts, cut = sound.decode("utf-8", "replace").split("\n")
    lines = [LogLine(source, _time(text), text) for text in texts]
    if unzip.eof and not cut:
        return [*lines]
    return [*lines, Gap(source, lines[-1].time if lines else "", "", f"{uri} is damaged", "")]


def _time(text: str) -> str:
    """When a line was logged."""
    try:
        return str(json.loads(text)["at"])
    except (ValueError, KeyError, TypeError):
        return ""
