"""What `python -m job --help` costs beside a bare interpreter: what a person waits for, and every pod."""

import subprocess
import sys
import time

from bench import Figure

_TRIES = 7
_GOAL_SECONDS = 0.5


def figures() -> list[Figure]:
    """The best of several starts of each: what else the machine does only ever adds."""
    ours = min(_seconds("-m", "job", "--help") for _ in range(_TRIES))
    bare = min(_seconds("-c", "pass") for _ in range(_TRIES))
    return [
        Figure(
            name="python -m job --help, beside a bare interpreter",
            ours=ours,
            theirs=bare,
            ratio=ours / bare,
            goal=f"<= {_GOAL_SECONDS} s more",
            holds=ours - bare <= _GOAL_SECONDS,
            unit="s",
        )
    ]


def _seconds(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began
