"""What a start of `python -m job` costs beside a bare interpreter: what a person waits for, and every pod."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from bench import Figure
from bench.processes import compiled_once

_TRIES = 7
_GOAL_SECONDS = 0.5
_GOAL_FIRST_LINE_SECONDS = 2.0


def figures() -> list[Figure]:
    """The best of several starts of each: the first one compiles, and what else the machine does only ever adds."""
    with tempfile.TemporaryDirectory() as bytecode:
        variables = compiled_once(Path(bytecode))
        ours = min(_seconds(variables, "-m", "job", "--help") for _ in range(_TRIES))
        first_line = min(_seconds_to_first_line(variables) for _ in range(_TRIES))
        bare = min(_seconds(variables, "-c", "pass") for _ in range(_TRIES))
    return [
        Figure(
            name="python -m job --help, beside a bare interpreter",
            ours=ours,
            theirs=bare,
            ratio=ours / bare,
            goal=f"<= {_GOAL_SECONDS} s more",
            holds=ours - bare <= _GOAL_SECONDS,
            unit="s",
        ),
        Figure(
            name="python -m job to its first log line, beside a bare interpreter",
            ours=first_line,
            theirs=bare,
            ratio=first_line / bare,
            goal=f"<= {_GOAL_FIRST_LINE_SECONDS:g} s",
            holds=first_line <= _GOAL_FIRST_LINE_SECONDS,
            unit="s",
        ),
    ]


def _seconds(variables: Mapping[str, str], *arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=variables, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _seconds_to_first_line(variables: Mapping[str, str]) -> float:
    """Of a run whose config is missing: the line comes before anything is asked of a store or a driver."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "job", "--config", f"{place}/none.yaml", "--runs", place, "--scratch", place]
        command += ["--termination-log", f"{place}/ended"]
        began = time.perf_counter()
        with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            seconds = time.perf_counter() - began
            process.stdout.read()
    return seconds
