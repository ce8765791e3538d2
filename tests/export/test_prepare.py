"""docker/llama-cpp.sh, with a package index that is played by a script."""

import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest

from tests.export.conftest import ROOT

SCRIPT = ROOT / "docker" / "llama-cpp.sh"
FILES = (
    "LICENSE",
    "convert_hf_to_gguf.py",
    "convert_lora_to_gguf.py",
    "conversion/__init__.py",
    "gguf-py/gguf/__init__.py",
)
# Makes an environment whose pip downloads slowly, and is Python for all else.
PLAYED = """#!/bin/sh
[ "$1" = -m ] || exec {python} "$@"
mkdir -p "$3/bin"
cp {pip} "$3/bin/pip"
"""
PIP = """#!/bin/sh
while [ "$1" != --requirement ]; do shift; done
cat "$2" >>{log}
sleep 0.5
cp {sdist} "$4"
"""


@pytest.fixture
def locked() -> tuple[str, str]:
    """The version and the hash in uv.lock."""
    with (ROOT / "uv.lock").open("rb") as file:
        [package] = [each for each in tomllib.load(file)["package"] if each["name"] == "llama-cpp-python"]
    return package["version"], package["sdist"]["hash"]


@pytest.fixture
def environment(tmp_path: Path, locked: tuple[str, str]) -> dict[str, str]:
    version, _ = locked
    sdist = tmp_path / f"llama_cpp_python-{version}.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        for name in FILES:
            (tmp_path / "empty").touch()
            tar.add(tmp_path / "empty", f"llama_cpp_python-{version}/vendor/llama.cpp/{name}")
    pip, python = tmp_path / "pip", tmp_path / "python"
    pip.write_text(PIP.format(log=tmp_path / "log", sdist=sdist))
    python.write_text(PLAYED.format(python=sys.executable, pip=pip))
    for script in (pip, python):
        script.chmod(0o755)
    return os.environ | {"PYTHON": str(python)}


def prepare(cache: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([SCRIPT, cache], env=environment, stdout=subprocess.PIPE, text=True)


def test_two_at_once_download_once_what_the_lock_names(
    tmp_path: Path, environment: dict[str, str], locked: tuple[str, str]
) -> None:
    cache = tmp_path / "cache"
    both = [prepare(cache, environment) for _ in range(2)]
    printed = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    version, digest = locked
    assert printed == {str(cache / f"llama.cpp-{version}")}
    assert (tmp_path / "log").read_text() == f"llama-cpp-python=={version} --hash={digest}\n", "one download"
    [directory] = [Path(path) for path in printed]
    assert {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} == {*FILES, "VERSION"}
    assert (directory / "VERSION").read_text() == f"{version}\n"
    assert {path.name for path in cache.iterdir()} == {directory.name, f"{directory.name}.lock"}


def test_what_is_there_is_not_fetched_again(tmp_path: Path, environment: dict[str, str]) -> None:
    first = prepare(tmp_path / "cache", environment).communicate()[0]
    (tmp_path / "pip").unlink()
    assert prepare(tmp_path / "cache", environment).communicate()[0] == first


def test_a_download_that_fails_leaves_nothing_half_done(
    tmp_path: Path, environment: dict[str, str], locked: tuple[str, str]
) -> None:
    (tmp_path / f"llama_cpp_python-{locked[0]}.tar.gz").unlink()
    process = prepare(tmp_path / "cache", environment)
    assert process.communicate()[0] == ""
    assert process.returncode != 0
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
