"""Children that hang and children that are only slow: real processes, and seconds where a run has ten minutes."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from job.children import run_child
from job.contract.errors import DeviceError
from job.contract.events import Alive, Event, Trained, Training
from job.watchdog import Watchdog
from tests.results import SUMMARY

FLOOR = 3.0
Start = Callable[..., list[str]]

HEAD = """
import faulthandler, multiprocessing, os, signal, sys, threading, time
faulthandler.register(signal.SIGUSR1, file=2)
events = open({pipe!r}, "w", buffering=1)
def tell(event, rest=""): events.write('{{"event": "%s"%s}}\\n' % (event, rest))
def train(): tell("training", ', "step": 0, "of": 9')
def wait_for_ever():
    lock = threading.Lock()
    with lock:
        lock.acquire()
open({note!r}, "w").write(str(os.getpid()))
"""


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """Where a child leaves its id."""
    return tmp_path / "pid"


@pytest.fixture
def start(tmp_path: Path, note: Path) -> Start:
    """Runs Python as a child under a watchdog; what it printed."""

    def run(
        code: str,
        lines: list[str] | None = None,
        on_event: Callable[[Event], None] = print,
        *,
        counts_work: bool = False,
    ) -> list[str]:
        said = [] if lines is None else lines
        pipe = tmp_path / "events"
        command = [sys.executable, "-uc", HEAD.format(pipe=str(pipe), note=str(note)) + code, "child"]
        watchdog = Watchdog(FLOOR, counts_work=counts_work)
        run_child(command, {"PATH": os.environ["PATH"]}, tmp_path, pipe, on_event, said.append, watchdog)
        return said

    return run


def is_gone(note: Path) -> bool:
    try:
        os.kill(int(note.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("before", ["", "train()\n"])
def test_a_deadlock_is_told_with_the_stacks(start: Start, note: Path, before: str) -> None:
    said: list[str] = []
    with pytest.raises(DeviceError, match="hangs: it gave no sign of life for 3 s") as raised:
        start(f"{before}wait_for_ever()", said)
    assert "FINETUNE_WATCHDOG_SECONDS" in raised.value.resolution
    assert any("in wait_for_ever" in line for line in said)
    assert is_gone(note)


def test_a_loader_whose_worker_hangs_is_told_with_the_workers_stack(start: Start, note: Path) -> None:
    code = """
train()
queue = multiprocessing.get_context("fork").Queue()
def load(): wait_for_ever()
def next_batch(): queue.get()
multiprocessing.get_context("fork").Process(target=load).start()
next_batch()
"""
    said: list[str] = []
    with pytest.raises(DeviceError):
        start(code, said)
    assert any("in next_batch" in line for line in said)
    assert any("in load" in line for line in said)
    assert is_gone(note)


def test_a_training_loop_that_hangs_while_others_print_is_seen(start: Start) -> None:
    code = """
def chat():
    while True:
        print("still waiting")
        time.sleep(0.2)
threading.Thread(target=chat, daemon=True).start()
train()
wait_for_ever()
"""
    said: list[str] = []
    with pytest.raises(DeviceError):
        start(code, said)
    assert "still waiting" in said


def test_a_stopped_child_is_ended(start: Start, note: Path) -> None:
    with pytest.raises(DeviceError):
        start("train(); os.kill(os.getpid(), signal.SIGSTOP)")
    assert is_gone(note)


def test_a_process_that_can_print_no_stack_is_not_asked(start: Start, tmp_path: Path) -> None:
    code = f"""
import subprocess
other = subprocess.Popen(["sleep", "600"])
def end(*_):
    open({str(tmp_path / "ended_by")!r}, "w").write(str(other.wait()))
    os._exit(1)
signal.signal(signal.SIGTERM, end)
train()
while True: time.sleep(0.1)
"""
    with pytest.raises(DeviceError):
        start(code)
    assert int((tmp_path / "ended_by").read_text()) == -signal.SIGTERM


STEADY = {
    "steps": 'train()\nfor _ in range(5): time.sleep(1); tell("alive")',
    "lines before the first step": "for _ in range(5): time.sleep(1); print('loading')",
    "a bar that is drawn over and over": r"for _ in range(5): time.sleep(1); sys.stdout.write('\r50%')",
}


@pytest.mark.parametrize("code", STEADY.values(), ids=STEADY)
def test_slow_and_steady_is_no_hang(start: Start, code: str) -> None:
    start(code)


BUSY = "begun = time.monotonic()\nwhile time.monotonic() - begun < 6: pass"


def test_an_export_that_works_without_a_word_is_no_hang(start: Start) -> None:
    start(
        f"import subprocess; subprocess.run([sys.executable, '-c', {'import time' + chr(10) + BUSY!r}])",
        counts_work=True,
    )


def test_training_that_only_uses_a_processor_is_one(start: Start) -> None:
    with pytest.raises(DeviceError):
        start(f"train()\n{BUSY}\ntime.sleep(60)")


def test_an_export_that_neither_works_nor_tells_is_one(start: Start) -> None:
    with pytest.raises(DeviceError):
        start("wait_for_ever()", counts_work=True)


def test_the_supervisors_own_work_is_not_the_childs_silence(start: Start) -> None:
    heard: list[Event] = []

    def upload(event: Event) -> None:
        heard.append(event)
        if isinstance(event, Training):
            time.sleep(1.3 * FLOOR)

    start('train()\nfor _ in range(8): time.sleep(1); tell("alive")', on_event=upload)
    assert heard == [Training(step=0, of=9), *[Alive()] * 8]


def fed(watchdog: Watchdog, event: Event, *seconds: float) -> float:
    """The limit after the same event came again and again, so far apart."""
    for each in seconds:
        watchdog.wait(os.getpid(), each)
        watchdog.hear(event)
    return watchdog.limit


def test_twenty_of_the_usual_steps_are_too_long_and_never_less_than_the_floor() -> None:
    watchdog = Watchdog(600)
    watchdog.hear(Training(step=0, of=100))
    assert fed(watchdog, Alive(), 599) == 600  # the first step compiles, and is no usual one
    assert fed(watchdog, Alive(), 5, 5, 5) == 600
    assert fed(watchdog, Alive(), *[50] * 4) == 1000
    assert fed(watchdog, Alive(), 999) == 1000
    watchdog.hear(Trained(summary=SUMMARY))
    assert watchdog.limit == 600


def test_nobody_is_asked_for_stacks_by_a_signal_that_would_end_it() -> None:
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL  # this process would die of it
    watchdog = Watchdog(1)
    watchdog.wait(os.getpid(), 2)
    with pytest.raises(DeviceError):
        watchdog.wait(os.getpid(), 3)
