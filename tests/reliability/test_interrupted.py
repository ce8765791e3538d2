"""A run that is told to stop, or killed, at any moment of it, again and again, comes to what an undisturbed one does."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

from job.contract.exits import Exit
from tests.cluster.node.attempts import adapter
from tests.reliability.conftest import Make, Uninterrupted
from tests.reliability.reader import Reader
from tests.reliability.starts import SOAK, StandIn, kill, log_of, side_by_side

TOLD = 40 if SOAK else 10
KILLED = 30 if SOAK else 4
EACH = 2
"""How often one run is interrupted."""
ENDED_BEFORE_PYTHON_LISTENS = -signal.SIGTERM
Log = list[dict[str, Any]]


def moments(count: int, seconds: float, seed: int) -> list[list[float]]:
    """Seconds after a start, some for each run."""
    draw = random.Random(seed)
    return [[draw.uniform(0, seconds) for _ in range(EACH)] for _ in range(count // EACH)]


def interrupted(
    pod: StandIn, after: list[float], end: Callable[["subprocess.Popen[str]"], None]
) -> tuple[list[tuple[int, str]], Log]:
    """How each start ended and what it printed; the log of them all and of the start that nobody interrupted."""
    endings = []
    for seconds in after:
        process = pod.process()
        time.sleep(seconds)
        end(process)
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in out + err
        assert pod.left() == []
        endings.append((process.returncode, out))
    last = pod.start()
    assert last.code == 0, last.printed
    assert pod.left() == []
    return endings, [line for _, out in endings for line in log_of(out)] + last.log


def values(log: Log, event: str, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(line[name] for name in names) for line in log if line["event"] == event]


def test_told_to_stop_at_any_moment(stand_in: Make, uninterrupted: Uninterrupted) -> None:
    def look(after: list[float]) -> None:
        pod = stand_in()
        with Reader(pod.root) as reader:
            endings, _ = interrupted(pod, after, lambda process: process.send_signal(signal.SIGTERM))
        assert adapter(reader.storage, pod.run) == uninterrupted.adapter
        assert len(reader.marks("result.json")) == 1
        for code, out in endings:
            if code == 0:
                assert any(line["event"] in ("artifact", "already done") for line in log_of(out)), out
            elif code == ENDED_BEFORE_PYTHON_LISTENS:
                assert out == ""
            else:
                assert code in (Exit.INTERRUPTED, 128 + signal.SIGTERM), out

    side_by_side(look, moments(TOLD, uninterrupted.seconds, 22))


def test_killed_at_any_moment(stand_in: Make, uninterrupted: Uninterrupted) -> None:
    def look(after: list[float]) -> None:
        pod = stand_in()
        with Reader(pod.root) as reader:
            _, log = interrupted(pod, after, kill)
        assert adapter(reader.storage, pod.run) == uninterrupted.adapter
        assert len(reader.marks("result.json")) == 1
        measured = ("step", "of", "loss", "learning_rate")
        whole = values(uninterrupted.ended.log, "step", *measured)
        # A step may be told twice, by the attempt that was killed and by the one that took it again.
        assert sorted(set(values(log, "step", *measured))) == sorted(whole)
        for event, names in (("rows", ("split", "rows", "tokens")), ("shown row", ("spans",))):
            told = values(log, event, *names)
            assert [each for each in told if each not in values(uninterrupted.ended.log, event, *names)] == []

    side_by_side(look, moments(KILLED, uninterrupted.seconds, 45))


def test_told_to_stop_while_it_trains_it_goes_on_from_where_it_was(stand_in: Make) -> None:
    """The moments above are of any stage; training is where something can be saved."""
    pod = stand_in(seconds=0.3, training={"save_steps": None, "save_seconds": 3600})
    process = pod.process()
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line)
        if '"event": "step"' in line:
            break
    os.kill(process.pid, signal.SIGTERM)
    lines += process.communicate(timeout=300)[0].splitlines(keepends=True)
    assert process.returncode == Exit.INTERRUPTED, lines
    assert "Traceback" not in "".join(lines)
    taken = values(log_of("".join(lines)), "step", "step")
    rest = pod.start()
    assert rest.code == 0, rest.printed
    assert values(rest.log, "resumed", "step") == taken[-1:]
    assert taken + values(rest.log, "step", "step") == [(step,) for step in range(1, 7)]
