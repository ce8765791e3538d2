"""Starts `kernels.py` in a process of its own, on the emulated card or on a real one."""

import json
import os
from pathlib import Path
from typing import TypedDict

from job.environment import environment
from tests.gpu_path.runs import emulated, run_plain


class Check(TypedDict):
    """One kernel alone."""

    apart: float
    """The largest relative difference to torch."""
    launches: dict[str, int]


Found = dict[str, Check]


def run_kernels(place: Path) -> Found:
    """The checks by name."""
    (place / "tmp").mkdir(parents=True)
    variables = environment(place, place, place, 1, 1, (), os.environ) | emulated("bfloat16")
    variables["UNSLOTH_GEMV_MAX_ROWS"] = "2"  # on most cards Unsloth's limit is one row
    run_plain("kernels", [str(place / "found.json")], variables, place)
    checks: Found = json.loads((place / "found.json").read_text())
    return checks
