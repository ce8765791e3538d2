"""Real processes: what they tell, what they print, and what their ends mean."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from job.children import end_running, run_child, train_command
from job.contract.errors import BugError, DataError, GpuOutOfMemory, JobError, KilledError
from job.contract.events import Event, Saved

Start = Callable[[str], tuple[list[Event], list[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Runs a line of Python as a child; `pipe` is the pipe's path."""

    def run(code: str) -> tuple[list[Event], list[str]]:
        events: list[Event] = []
        lines: list[str] = []
        pipe = tmp_path / "events"
        text = f"import os, signal, sys, time, subprocess\npipe = {str(pipe)!r}\n{code}"
        command = [sys.executable, "-c", text, "child"]
        run_child(command, {"PATH": os.environ["PATH"]}, tmp_path, pipe, events.append, lines.append)
        return events, lines

    return run


_SAVED = """open(pipe, "w").write('{"event": "saved", "step": 3, "directory": "/d"}\\n')"""


def failing(code: int) -> str:
    return f"""open(pipe, "w").write('{{"event": "failed", "code": {code}, "message": "m", "resolution": "r"}}\\n'); sys.exit({code})"""


def test_events_and_lines_arrive_in_order(start: Start) -> None:
    events, lines = start(f"print('before'); {_SAVED}; print('after', file=sys.stderr)")
    assert events == [Saved(step=3, directory="/d")]
    assert sorted(lines) == ["after", "before"]


def test_ten_thousand_events_are_all_heard(start: Start) -> None:
    events, _ = start(f"for _ in range(10_000): {_SAVED}")
    assert len(events) == 10_000


def test_a_progress_bar_leaves_its_last_drawing(start: Start) -> None:
    _, lines = start(r"sys.stdout.write('10%\r50%\r100%\n')")
    assert lines == ["100%"]


@pytest.mark.parametrize(("code", "kind"), [(65, DataError), (70, BugError), (79, GpuOutOfMemory)])
def test_a_failure_is_told_in_the_childs_own_words(start: Start, code: int, kind: type[JobError]) -> None:
    with pytest.raises(kind) as raised:
        start(failing(code))
    assert (raised.value.message, raised.value.resolution, raised.value.code) == ("m", "r", code)


def test_a_child_that_crashes_is_told_with_its_last_words(start: Start) -> None:
    with pytest.raises(BugError, match="ZeroDivisionError"):
        start("1 / 0")


def test_a_child_that_is_killed_gives_128_and_the_signal(start: Start) -> None:
    with pytest.raises(KilledError, match="SIGKILL") as raised:
        start("os.kill(os.getpid(), signal.SIGKILL)")
    assert raised.value.code == 137


def test_what_is_no_event_ends_the_child(start: Start) -> None:
    began = time.monotonic()
    with pytest.raises(BugError, match="no event"):
        start("""open(pipe, "w").write('{"event": "nonsense"}\\n'); time.sleep(60)""")
    assert time.monotonic() - began < 30, "the child was waited for"


def look_for(pid: int, seconds: float) -> None:
    """Returns when the process is still there after that time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        os.kill(pid, 0)
        time.sleep(0.05)


def test_no_process_is_left_behind(start: Start, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    grandchild = f"p = subprocess.Popen(['sleep', '600']); open({str(note)!r}, 'w').write(str(p.pid))"
    start(grandchild)
    with pytest.raises(ProcessLookupError):
        look_for(int(note.read_text()), seconds=5)


def test_the_supervisors_own_signal_ends_the_child(start: Start, tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def end(*_: object) -> None:
        raise KilledError("told to end", "", signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        code = f"open({str(note)!r}, 'w').write(str(os.getpid())); os.kill(os.getppid(), signal.SIGTERM)"
        with pytest.raises(KilledError, match="told to end"):
            start(f"{code}; time.sleep(60)")
    finally:
        signal.signal(signal.SIGTERM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_an_ending_that_does_not_unwind_takes_its_children_with_it(start: Start, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    deaf = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); open({str(note)!r}, 'w').write(str(os.getpid()))"

    def end() -> None:
        while not (note.exists() and note.read_text()):
            time.sleep(0.05)
        end_running(0.5)

    ender = threading.Thread(target=end)
    ender.start()
    with pytest.raises(KilledError, match="SIGKILL"):
        start(f"{deaf}; time.sleep(60)")
    ender.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_a_child_that_does_not_end_when_it_is_asked_to_is_killed_after_its_grace(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    command = [sys.executable, "-c", f"import os, signal, time; {deaf}"]

    def give_up(line: str) -> None:
        raise KilledError(line, "", signal.SIGTERM)

    with pytest.raises(KilledError) as raised:
        run_child(command, {}, tmp_path, tmp_path / "events", print, give_up, grace_seconds=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(int(raised.value.message), 0)


def test_several_gpus_start_one_process_each() -> None:
    command = train_command(Path("/plan.json"), 4)
    assert command[1:] == [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"),
        *("-m", "job.train", "/plan.json"),
    ]
