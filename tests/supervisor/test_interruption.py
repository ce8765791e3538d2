"""SIGTERM, sent to real processes."""

import signal
import subprocess
import sys
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
