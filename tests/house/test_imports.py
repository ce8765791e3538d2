"""The rules of `.importlinter` hold, and each of them bites: a planted import is found by the rule that forbids it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")


def verdicts(tree: Path) -> dict[str, str]:
    """What import-linter says of each rule: the rule's name to KEPT or BROKEN."""
    run = subprocess.run(
        [LINT_IMPORTS, "--no-cache", "--no-logo"],
        cwd=tree,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    found = dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", run.stdout, re.MULTILINE))
    assert found, run.stdout + run.stderr
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of all that import-linter reads."""
    for folder in ("job", "launcher", "tests/house"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_the_tree_keeps_every_rule(tree: Path) -> None:
    assert set(verdicts(tree).values()) == {"KEPT"}


BREAKS = [
    ("the contract reads a store", "job/contract/keys.py", "from job import storage", "job.contract is"),
    ("the contract needs more than pydantic", "job/contract/model.py", "import orjson", "job.contract is"),
    ("storage knows the rows", "job/storage/__init__.py", "from job import dataset", "job.storage knows"),
    ("the dataset starts a supervisor", "job/dataset/__init__.py", "from job import supervisor", "job.dataset knows"),
    ("the dataset reads with datasets", "job/dataset/__init__.py", "import datasets", "job.dataset knows"),
    ("freezing needs the supervisor", "job/inputs.py", "import job.supervisor", "job.inputs knows"),
    ("the supervisor imports torch", "job/supervisor.py", "import torch", "the children alone"),
    ("the edge imports unsloth, late", "job/__main__.py", "def late():\n    import unsloth", "the children alone"),
    ("the supervisor calls the training", "job/supervisor.py", "from job import train", "the children are started"),
    ("the export uploads", "job/export.py", "from job import storage", "the children know no"),
    ("the training talks to S3", "job/train.py", "import boto3", "the children know no"),
    ("the training talks to Kubernetes", "job/train.py", "import kubernetes", "the children know no"),
    ("the launcher knows the supervisor", "launcher/launching.py", "from job import run", "the launcher knows"),
    ("the launcher imports torch", "launcher/cli.py", "def late():\n    import torch", "the launcher knows"),
    ("a child reaches S3 by a detour", "job/telling.py", "import boto3", "the children know no"),
]


@pytest.mark.parametrize(("file", "line", "rule"), [case[1:] for case in BREAKS], ids=[case[0] for case in BREAKS])
def test_a_planted_import_is_found(tree: Path, file: str, line: str, rule: str) -> None:
    with (tree / file).open("a") as source:
        source.write(f"\n{line}\n")
    broken = [name for name, verdict in verdicts(tree).items() if verdict == "BROKEN"]
    assert [name for name in broken if name.startswith(rule)]


def test_every_rule_has_a_planted_break(tree: Path) -> None:
    planted = {case[3] for case in BREAKS}
    assert [name for name in verdicts(tree) if not any(name.startswith(rule) for rule in planted)] == []
