"""Reading, converting and checking 100,000 ShareGPT conversations, beside `datasets` with Unsloth's `standardize_sharegpt`.

Both sides run one after the other, each in a process that has imported what it needs before the clock starts, on a file
that is not in the page cache, with an empty `datasets` cache.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import Figure, at_most

ROWS = 100_000
_WORDS = 20_000
_ROW_WORDS = 330  # makes about 2.5 kB a row
GOAL, GROWTH_GOAL = 1.0, 2.2

_OURS = """
import time
from job.dataset.chats import to_chat
from job.dataset.rejects import BadRow
from job.dataset.rows import read_rows
start = time.perf_counter()
kept = 0
for where, row in read_rows(path, path.name, 1 << 24, 200):
    if isinstance(row, BadRow):
        raise row
    to_chat(row, "auto")
    kept += 1
seconds = time.perf_counter() - start
"""
_THEIRS = """
import time
import unsloth
from datasets import load_dataset
from unsloth.chat_templates import standardize_sharegpt
start = time.perf_counter()
rows = standardize_sharegpt(load_dataset("json", data_files=str(path), split="train"))
seconds = time.perf_counter() - start
kept = len(rows)
"""


def figures() -> list[Figure]:
    """Seconds of both sides, and how ours grow with twice the rows."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        path = write_conversations(home / "train.jsonl", ROWS)
        theirs = _seconds(_THEIRS, path, home, ROWS)
        ours = _seconds(_OURS, path, home, ROWS)
        twice = write_conversations(home / "twice.jsonl", 2 * ROWS)
        ours_twice = _seconds(_OURS, twice, home, 2 * ROWS)
    return [
        at_most(f"{ROWS:,} conversations read, converted and checked", ours, theirs, GOAL),
        at_most(f"{2 * ROWS:,} conversations, beside {ROWS:,}", ours_twice, ours, GROWTH_GOAL),
    ]


def write_conversations(path: Path, rows: int) -> Path:
    """A file of ShareGPT rows as FineTome has them, about 2.5 kB each, the same for the same number of rows."""
    chance = random.Random(7)
    words = ["".join(chance.choices("etaoinshrdlucmfwypvbgkqjxz", k=chance.randint(2, 11))) for _ in range(_WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            turns = 2 * chance.randint(1, 3)
            size = _ROW_WORDS // turns
            conversation = [
                {
                    "from": ("human", "gpt")[turn % 2],
                    "value": " ".join(chance.choices(words, k=size)) + f'.\n"{number}"',
                }
                for turn in range(turns)
            ]
            file.write(json.dumps({"conversations": conversation, "source": "synthetic", "score": 5.2}) + "\n")
    return path


def _seconds(code: str, path: Path, home: Path, rows: int) -> float:
    """What the code measures, in a process of its own; it must find all rows."""
    _forget_pages(path)
    prelude = "import pathlib, sys\npath = pathlib.Path(sys.argv[1])\n"
    ending = "\npathlib.Path(sys.argv[2]).write_text(f'{seconds} {kept}')"
    environment = os.environ | {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "UNSLOTH_COMPILE_LOCATION": str(home / "compiled"),
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_FORCE_CPU": "1",
    }
    subprocess.run(
        [sys.executable, "-c", prelude + code + ending, path, home / "seconds"],
        cwd=home,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
    seconds, kept = (home / "seconds").read_text().split()
    if int(kept) != rows:
        raise AssertionError(f"{kept} rows of {rows}")
    return float(seconds)


def _forget_pages(path: Path) -> None:
    """Write a file's pages out and drop them from the page cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
