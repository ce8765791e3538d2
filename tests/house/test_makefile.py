"""What `make` offers, and that no folder of tests is left out of `make test`."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> str:
    """What it prints. The packages count as installed: these tests run from them."""
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", *arguments]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=True).stdout


def test_make_alone_lists_every_target() -> None:
    phony = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    targets = phony[0].split()
    assert len(targets) > 10
    assert {f"make {target}" for target in targets} <= {line.split("  ")[0] for line in make().splitlines()}


def test_make_test_runs_every_folder_of_tests() -> None:
    run = set(re.findall(r"tests/\w+", make("--dry-run", "test")))
    left_out = {"__pycache__", "soak"}  # `make soak` takes an hour
    folders = [path for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name not in left_out]
    assert sorted(run) == sorted(f"tests/{folder.name}" for folder in folders)


def test_ci_runs_what_the_readme_says() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test " in (ROOT / "README.md").read_text()
    assert [line for line in script if line.startswith("make ")] == ["make lint", "make test"]
