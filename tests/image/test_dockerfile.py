"""What the Dockerfile promises and can be read from it, without building anything."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from examples.cache import CACHE

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()


def instructions(text: str = DOCKERFILE) -> list[tuple[str, str]]:
    """Each instruction with its arguments, continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def stages() -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.split()[-1]] = []
        elif found:
            list(found.values())[-1].append((word, rest))
    return found


TARGETS = ["launcher", "trainer"]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_trainer_is_what_is_built_unless_asked_otherwise() -> None:
    assert list(stages())[-1] == "trainer"


def test_every_base_is_a_stage_or_pinned_by_digest() -> None:
    defaults = dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG" and "@" in rest)
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    outside = {base.strip("${}") for base in bases if base not in stages()}
    assert outside == set(defaults) == {"BASE_IMAGE", "LAUNCHER_BASE_IMAGE"}
    assert all(re.fullmatch(r"[\w/.-]+:[\w.-]+@sha256:[0-9a-f]{64}", base) for base in defaults.values())


@pytest.mark.parametrize("target", TARGETS)
def test_it_starts_without_a_shell_and_as_nobody(target: str) -> None:
    said = dict(stages()[target])
    command = json.loads(said["ENTRYPOINT"])
    assert command[:2] == ["/usr/bin/tini", "--"]
    assert command[2].startswith("/")
    assert said["USER"] == "65532:65532"
    assert "CMD" not in said


@pytest.mark.parametrize("target", TARGETS)
def test_our_code_is_the_last_layer(target: str) -> None:
    """So that a change of it pushes that layer alone: what follows writes no files."""
    layers = [rest for word, rest in stages()[target] if word in {"COPY", "ADD", "RUN"}]
    assert layers[-1].startswith("--from=code ")
    assert not any(rest.startswith("--from=code ") for rest in layers[:-1])


def test_the_packages_layers_know_nothing_of_our_code() -> None:
    """Their stages see the lists of uv.lock: another version of ours, or another test, builds and pushes them not again."""
    for name in ("launcher-packages", "trainer-packages"):
        copied = [rest for word, rest in stages()[name] if word == "COPY"]
        assert all(rest.startswith(("--from=tools ", "docker/")) for rest in copied), copied


@pytest.mark.parametrize("target", TARGETS)
def test_no_file_is_in_it_twice(target: str) -> None:
    """Layers are copied, never changed: a RUN that touches a file of a lower layer would store it again."""
    assert not [rest for word, rest in stages()[target] if word in {"RUN", "ADD"}]
    copied = [rest.split()[-2:] for word, rest in stages()[target] if word == "COPY"]
    assert len({source for source, _ in copied}) == len(copied)


@pytest.mark.parametrize("target", TARGETS)
def test_it_is_labelled(target: str) -> None:
    [labels] = [rest for word, rest in stages()[target] if word == "LABEL"]
    named = set(re.findall(r"org\.opencontainers\.image\.(\w+)=", labels))
    assert {"version", "revision", "source", "licenses"} <= named


def test_the_trainer_brings_what_triton_compiles_with_and_nothing_that_fetches() -> None:
    installed = " ".join(rest for word, rest in stages()["trainer-base"] + stages()["trainer"] if word == "RUN")
    assert {"gcc", "g++", "libc6-dev", "tini"} <= set(installed.split())
    assert not {"git", "cmake", "sudo", "curl", "wget", "python3-pip"} & set(installed.split())


def test_no_argument_or_variable_is_a_secret() -> None:
    named = {
        name
        for word, rest in instructions()
        if word in {"ARG", "ENV"}
        for name in re.findall(r"\b([A-Z][A-Z_]+)(?:=|\s|$)", rest)
    }
    assert {"BASE_IMAGE", "HOME"} <= named
    assert [name for name in named if re.search("SECRET|TOKEN|PASSWORD|KEY", name)] == []


def test_everything_that_is_installed_has_a_hash() -> None:
    scripts = "".join(path.read_text() for path in sorted((ROOT / "docker").glob("*.sh")))
    commands = re.findall(r"(?:pip install|pip sync|pip\" download)\b(?:[^\n]|(?<=\\)\n)*", DOCKERFILE + scripts)
    assert len(commands) == 5
    # Our own code has none, and what builds it comes from the list with hashes.
    assert all("--require-hashes" in each or "--build-constraints" in each for each in commands)
    assert [
        each for each in commands if "--require-hashes" not in each and "--target /opt/finetune ." not in each
    ] == []


def test_uv_is_of_one_version() -> None:
    [pinned] = re.findall(r"^uv==(\S+) --hash=sha256:[0-9a-f]{64}$", (ROOT / "docker" / "uv.txt").read_text(), re.M)
    assert f"UV_VERSION := {pinned}\n" in (ROOT / "Makefile").read_text()


@pytest.fixture
def uv() -> str:
    found = shutil.which("uv") or next(map(str, CACHE.glob("uv-*/bin/uv")), None)
    if not found:
        pytest.skip("uv is not where `make install` puts it")
    return found


@pytest.fixture
def lists(uv: str, tmp_path: Path) -> Path:
    """The lists that the build installs from."""
    command = [ROOT / "docker" / "requirements.sh", tmp_path]
    environment = {"PATH": f"{Path(uv).parent}:/usr/bin:/bin", "HOME": str(Path.home())}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return tmp_path


def test_the_lists_are_those_of_the_lock(lists: Path) -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    locked = {f"{each['name']}=={each['version']}" for each in packages}
    texts = {path.stem: path.read_text() for path in lists.glob("*.txt")}
    assert set(texts) == {"launcher", "trainer", "image"}
    for text in texts.values():
        entries = text.replace("\\\n", "").splitlines()
        assert all("--hash=sha256:" in entry for entry in entries)
        assert {entry.split()[0] for entry in entries} <= locked
    assert "\ntorch==" in texts["trainer"]
    assert "\ntorch==" not in texts["launcher"]
    assert not any("\npytest==" in text or "\nfinetune" in text for text in texts.values())
    assert "GGML_NATIVE=OFF" in (lists / "uv.toml").read_text()


def test_a_package_whose_hash_was_tampered_with_is_not_installed(uv: str, lists: Path, tmp_path: Path) -> None:
    [entry] = re.findall(r"^click==(?:.*\\\n)*.*$", (lists / "launcher.txt").read_text(), re.MULTILINE)
    tampered = re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", entry)
    told = {}
    for name, text in (("whole", entry), ("tampered", tampered)):
        (tmp_path / name).write_text(text)
        command = [uv, "pip", "install", "--require-hashes", "--no-deps", "--python", sys.executable]
        command += ["--requirement", str(tmp_path / name), "--target", str(tmp_path / f"{name}-packages")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told[name] = done.returncode, "mismatch" in done.stderr
    assert told == {"whole": (0, False), "tampered": (1, True)}
    assert (tmp_path / "whole-packages" / "click").is_dir()
    assert not (tmp_path / "tampered-packages" / "click").exists()


def test_the_build_sees_only_what_it_copies() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source.rstrip("/").split("/")[0]
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from=")
        for source in rest.split()[:-1]
    }
    assert kept == copied
    assert "\n*\n" in (ROOT / ".dockerignore").read_text()


def test_a_registry_out_of_reach_leaves_the_pins(tmp_path: Path) -> None:
    """`make image-pin` writes both digests or none."""
    shutil.copytree(ROOT / "docker", tmp_path / "docker")
    skopeo = tmp_path / "skopeo"
    skopeo.write_text('#!/bin/sh\ncase "$*" in *nvidia*) echo sha256:' + "0" * 64 + ";; *) exit 1;; esac\n")
    skopeo.chmod(0o755)
    command, environment = [tmp_path / "docker" / "pin.sh"], {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode != 0
    assert (tmp_path / "docker" / "Dockerfile").read_text() == DOCKERFILE

    skopeo.write_text("#!/bin/sh\necho sha256:" + "0" * 64 + "\n")
    subprocess.run(command, env=environment, capture_output=True, check=True)
    pinned = (tmp_path / "docker" / "Dockerfile").read_text()
    assert pinned == re.sub(r"@sha256:[0-9a-f]{64}", "@sha256:" + "0" * 64, DOCKERFILE)
