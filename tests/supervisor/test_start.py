"""What a start of `python -m job` does first."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_first_line_comes_before_what_takes_long_to_import(tmp_path: Path) -> None:
    flags = [arg for name in ("config", "runs", "scratch", "termination-log") for arg in (f"--{name}", tmp_path / name)]
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "job", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert ended.returncode == 66, ended.stdout
    before, _, after = ended.stdout.partition('"event": "start"')
    early, late = (re.findall(r"\| +([\w.]+)$", part, re.MULTILINE) for part in (before, after))
    assert "structlog" in early
    assert not {"job.supervisor", "job.storage", "pyarrow", "tokenizers", "jinja2"} & set(early)
    assert "job.supervisor" in late
