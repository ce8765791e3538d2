"""The images that ship, built by podman on this machine without a registry: see docs/image.md."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from examples.cache import CACHE, making
from examples.cluster.images import StoredImage
from examples.cluster.standin import debian

_ROOT = Path(__file__).parents[2]
_BASE = "localhost/debian:12-python"
_MADE_FROM = "finetune.local/made-from"
_CERTIFICATES = "/etc/ssl/certs"


def missing() -> str | None:
    """What keeps this machine from building them; None when nothing does."""
    if not shutil.which("podman"):
        return "apt-get install podman"
    driver = subprocess.run(
        ["podman", "info", "--format", "{{.Store.GraphDriverName}}"], capture_output=True, text=True, check=False
    )
    return (
        None
        if driver.stdout.strip() == "overlay"
        else "podman's storage driver overlay, whose layers a node can use as they are"
    )


def build(target: str = "trainer") -> StoredImage:
    """Builds one: up to 15 minutes and 22 GB on first use, two minutes for other code of ours, nothing where nothing changed.

    Args:
        target: `trainer` or `launcher`.

    Raises:
        RuntimeError: with the last of what the builder said.
    """
    images = CACHE / "images"
    log = images / f"{target}.log"
    with making(images / "build"):  # one at a time: both share a base
        sources = _sources()
        if (found := _inspected(target)) and found["Labels"].get(_MADE_FROM) == sources:
            return _stored(found, target)
        command, told = [_ROOT / "docker" / "build.sh"], environment(target, f"--label={_MADE_FROM}={sources}")
        with log.open("wb") as output:
            if subprocess.run(["podman", "image", "exists", _BASE], check=False).returncode:
                subprocess.run(["podman", "import", str(debian()), _BASE], stdout=output, stderr=output, check=True)
            built = subprocess.run(command, env=told, stdout=output, stderr=output, check=False)
        found = _inspected(target)
        if built.returncode or not found:
            raise RuntimeError(f"the image was not built; the end of {log}:\n{log.read_text(errors='replace')[-3000:]}")
        return _stored(found, target)


def environment(target: str, *more: str) -> dict[str, str]:
    """What docker/build.sh is told. This machine's certificates and packages are there as long as it builds.

    Args:
        target: `trainer` or `launcher`.
        more: flags of the builder.
    """
    packages = subprocess.check_output([_uv(), "cache", "dir"], text=True).strip()
    flags = ["--isolation=chroot", "--network=host", f"--volume={packages}:/root/.cache/uv", *more]
    flags += [f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro"] if Path(_CERTIFICATES).exists() else []
    told = {
        "ENGINE": "podman",
        "IMAGE": _tag(target),
        "TARGET": target,
        "BASE_IMAGE": _BASE,
        "LAUNCHER_BASE_IMAGE": _BASE,
        "SYSTEM_PYTHON": "python3.11 libpython3.11-dev" if target == "trainer" else "python3.11",
        "FLAGS": " ".join(flags),
    }
    return os.environ | told


def _name(target: str) -> str:
    return f"localhost/finetune-{target}"


def _tag(target: str) -> str:
    """Its name for people; `make image` leaves it alone."""
    return f"{_name(target)}:debian"


def _sources() -> str:
    """The hash of all that a build sees and is told. Its engine would look at 7 GB to find that nothing has changed."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    seen = [line[1:] for line in (_ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for top in sorted(seen):
        place = _ROOT / top
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(_ROOT)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _uv() -> str:
    """Where `make install` found it or put it."""
    return shutil.which("uv") or str(next(CACHE.glob("uv-*/bin/uv")))


def _inspected(target: str) -> dict[str, Any] | None:
    """What podman says of the image; None when there is none."""
    command = ["podman", "image", "inspect", _tag(target)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return None if done.returncode else json.loads(done.stdout)[0]


def _stored(found: dict[str, Any], target: str) -> StoredImage:
    """The image as podman's store has it, down to the bytes of its manifest."""
    root = Path(subprocess.check_output(["podman", "info", "--format", "{{.Store.GraphRoot}}"], text=True).strip())
    documents = root / "overlay-images" / found["Id"]
    config = base64.b64encode(f"sha256:{found['Id']}".encode()).decode()
    places = found["GraphDriver"]["Data"]
    directories = [*reversed(places["LowerDir"].split(":")), places["UpperDir"]]
    return StoredImage(
        name=f"{_name(target)}@{found['Digest']}",
        manifest=(documents / "manifest").read_bytes(),
        config=(documents / f"={config}").read_bytes(),
        layers=tuple(zip(found["RootFS"]["Layers"], map(Path, directories), strict=True)),
    )
