"""The demo as a person runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

from examples.demo.answers import answers
from examples.demo.base_model import GGUF
from examples.demo.data import HELD_OUT
from examples.demo.score import is_in_format

ROOT = Path(__file__).parents[2]


def demo(llama_cpp: Path, directory: Path, *flags: str) -> str:
    """What it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--directory", directory, *flags],
        cwd=ROOT,
        env=os.environ | {"FINETUNE_LLAMA_CPP": str(llama_cpp), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def score(printed: str) -> tuple[int, int]:
    """How many answers were in the format, before and after."""
    found = re.search(r"taught: (\d+) of 10 before, (\d+) of 10 after", printed)
    assert found, printed[-5000:]
    return int(found[1]), int(found[2])


def test_the_base_does_not_answer_in_the_format() -> None:
    assert not any(map(is_in_format, answers(GGUF, HELD_OUT)))


def test_the_demo_teaches_a_format_that_held_out_prompts_are_answered_in(llama_cpp: Path, tmp_path: Path) -> None:
    printed = demo(llama_cpp, tmp_path)
    before, after = score(printed)
    assert before == 0
    assert after >= 8
    (artifacts,) = (tmp_path / "artifacts").iterdir()
    for name in ("lora/adapter_model.safetensors", "gguf/demo.F16.gguf", "gguf/demo.Q8_0.gguf", "gguf/Modelfile"):
        assert (artifacts / name).stat().st_size > 0
        assert name in printed

    again = demo(llama_cpp, tmp_path)
    assert "already done" in again
    assert '"stage": "train"' not in again
    assert score(again) == (before, after)
