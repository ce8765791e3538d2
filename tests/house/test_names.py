"""How the tree is named, and what a light start costs."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("job", "bench", "examples", "tests", "docs") for path in (ROOT / folder).rglob("*.py")
)


def test_no_module_is_named_for_nothing_in_the_domain() -> None:
    nothing = re.compile(r"^(utils?|common|helpers?|constants?|misc)$")
    assert len(SOURCES) > 30
    assert [
        path
        for path in SOURCES
        if any(nothing.match(part) for part in (*path.parent.relative_to(ROOT).parts, path.stem))
    ] == []


def test_every_folder_of_tests_holds_tests() -> None:
    folders = [path for path in (ROOT / "tests").iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert [folder.name for folder in folders if not list(folder.glob("test_*.py"))] == []


def test_help_imports_no_training_stack() -> None:
    program = (
        "import runpy, sys\n"
        "sys.argv = ['job', '--help']\n"
        "try:\n    runpy.run_module('job', run_name='__main__')\n"
        "except SystemExit as end:\n    code = end.code\n"
        "heavy = {'torch', 'unsloth', 'transformers', 'trl', 'peft', 'datasets', 'bitsandbytes', 'pyarrow'} & set(sys.modules)\n"
        "print(code, sorted(heavy))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--config" in run.stdout
    assert run.stdout.splitlines()[-1] in ("0 []", "None []")
