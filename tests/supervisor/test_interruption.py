"""SIGTERM, sent to real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_HEAD = """
import os, signal, sys, time
from job.interruption import Interruption, ToldToStop
def give_up(why):
    print(why, flush=True)
    os._exit(143)
def asked():
    os.write(1, b"asked\\n")
def wait(seconds=60):
    print("waits", flush=True)
    time.sleep(seconds)
interruption = Interruption({grace}, give_up)
interruption.listen()
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Start:
    """A process that runs the lines and waits for SIGTERM."""

    def run(lines: str, grace: float = 60) -> "subprocess.Popen[str]":
        code = _HEAD.format(grace=grace) + lines
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGTERM)
        return process

    return run


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    out, _ = process.communicate(timeout=30)
    return process.returncode, out


_JOB = """
import runpy, sys
{before}
runpy.run_module("job", run_name="__main__")
"""


def job(before: str, place: Path, *flags: str, grace: float = 60) -> "tuple[subprocess.CompletedProcess[str], int]":
    """A start of the job in a process that runs these lines first; how it ended, and the code that it told Kubernetes."""
    told = place / "told"
    ended = subprocess.run(
        [sys.executable, "-c", _JOB.format(before=before), *flags],
        env=os.environ | {"FINETUNE_TERMINATION_LOG": str(told), "FINETUNE_GRACE_SECONDS": str(grace)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    return ended, json.loads(told.read_text())["code"] if told.exists() else 0


def places(place: Path) -> list[str]:
    return [arg for name in ("config", "runs", "scratch") for arg in (f"--{name}", str(place / name))]


def told_at_import_of(module: str) -> str:
    """Lines by which a process sends itself SIGTERM when it comes to import the module."""
    return f"""
import os, signal
def tell(event, arguments):
    if event == "import" and arguments[0] == {module!r}:
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(tell)
"""


@pytest.mark.parametrize("module", ["job.contract", "pydantic", "structlog", "job.supervisor"])
def test_one_that_comes_while_a_start_still_imports_ends_it_before_it_does_anything(
    module: str, tmp_path: Path
) -> None:
    ended, told = job(told_at_import_of(module), tmp_path, *places(tmp_path))
    assert (ended.returncode, told) == (75, 75), ended.stdout + ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["told"]


@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--nonsense", 64)])
def test_one_that_comes_while_flags_are_read_changes_no_ending_that_is_at_hand(
    flag: str, code: int, tmp_path: Path
) -> None:
    ended, told = job(told_at_import_of("pydantic"), tmp_path, flag)
    assert (ended.returncode, told) == (code, code), ended.stdout + ended.stderr


def test_a_short_grace_period_leaves_time_for_ending_all_the_same(tmp_path: Path) -> None:
    """The child is deaf, the run hangs and so does the store."""
    hangs = """
import os, signal, time, types
def run(settings, stages, buffer, interruption):
    from job.children import run_child
    from pathlib import Path
    def told(line):
        print(time.monotonic(), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    interruption.hold(lambda: None)
    interruption.last_words = lambda outcome, seconds: time.sleep(seconds)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    place = settings.termination_log.parent
    run_child([sys.executable, "-c", deaf], os.environ, place, place / "events", print, told)
sys.modules["job.supervisor"] = types.SimpleNamespace(run=run)
"""
    ended, told = job(hangs, tmp_path, *places(tmp_path), grace=1)
    over = time.monotonic()
    assert (ended.returncode, told) == (143, 143), ended.stdout + ended.stderr
    assert over - float(ended.stdout.splitlines()[-1]) < 4, "1 of these is the grace period, at most 0.15 what follows"


def test_with_nothing_to_save_the_run_unwinds(start: Start) -> None:
    lines = """
try:
    try:
        wait()
    except Exception:
        print("taken for a failure")
    finally:
        print("unwound")
except ToldToStop:
    sys.exit(75)
"""
    assert end(start(lines)) == (75, "unwound\n")


def test_with_something_to_save_it_is_asked_for_and_then_the_run_ends(start: Start) -> None:
    lines = """
interruption.hold(asked)
wait(0.5)
time.sleep(0.5)
print("goes on")
try:
    interruption.release()
except ToldToStop:
    sys.exit(75)
"""
    assert end(start(lines)) == (75, "asked\ngoes on\n")


def test_a_second_one_gives_up(start: Start) -> None:
    process = start("interruption.hold(asked)\nwait()\ntime.sleep(60)\n")
    assert process.stdout
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)
    code, out = end(process)
    assert code == 143
    assert "second SIGTERM" in out


def test_the_end_of_the_grace_period_gives_up_whatever_hangs(start: Start) -> None:
    lines = """
try:
    wait()
finally:
    time.sleep(60)
"""
    code, out = end(start(lines, grace=0.3))
    assert code == 143
    assert "within 0.3 s" in out


def test_a_newer_attempt_ends_it_wherever_it_is() -> None:
    lines = """
import threading
from job.contract.errors import FencedError
from job.interruption import Overtaken
threading.Timer(0.3, interruption.overtake, [FencedError("attempt 2 has taken over")]).start()
try:
    try:
        interruption.hold(asked)
        time.sleep(60)
    except Exception:
        print("taken for a failure")
    finally:
        print("unwound")
except Overtaken as error:
    print(error.by.message)
    interruption.over()
    interruption.overtake(FencedError("again"))
    sys.exit(76)
"""
    code = _HEAD.format(grace=60) + lines
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stdout) == (76, "unwound\nattempt 2 has taken over\n"), ended.stderr


def test_a_run_that_has_ended_is_not_ended_again(start: Start) -> None:
    lines = """
interruption.hold(asked)
wait(0.5)
interruption.over()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(0.6)
print("told")
"""
    assert end(start(lines, grace=0.8)) == (0, "asked\ntold\n")
