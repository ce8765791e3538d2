"""The trainer's stand-in: the image's supervisor is the real one, and its children keep the contract without torch.

For tests that need many pods or faults, and to try a cluster out. Debian with Python, and the packages of uv.lock that
the launcher and the supervisor need.
"""

import compileall
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import Distribution, distribution
from pathlib import Path
from py_compile import PycInvalidationMode

from packaging.requirements import Requirement

from examples.cache import CACHE, making
from examples.cluster.images import archive

IMAGE = "localhost/finetune-stand-in:1"
_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
_PACKAGES = "usr/local/lib/python3.11/dist-packages"
_INCLUDED = "python3-minimal,libpython3-stdlib,ca-certificates"
_NOT_NEEDED = (
    "var/cache/apt",
    "var/lib/apt/lists",
    *(f"usr/share/{name}" for name in ("doc", "man", "locale", "i18n")),
)


def build(path: Path) -> Path:
    """Writes the image as an archive; the layers below our own code are kept in a cache."""
    code = {f"{_PACKAGES}/{name}": _ROOT / name for name in ("job", "launcher")}
    standins = {f"{_PACKAGES}/job/{name}.py": _HERE / f"{name}.py" for name in ("train", "export")}
    return archive(
        path,
        IMAGE,
        [debian(), _packages(), code, standins | {f"{_PACKAGES}/pynvml.py": _HERE / "pynvml.py"}],
        entrypoint=["/usr/bin/python3", "-m", "job"],
        environment={
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "MPLCONFIGDIR": "/scratch/matplotlib",
        },
    )


def debian() -> Path:
    """Debian 12 with its Python 3.11: a minute on first use."""
    layer = CACHE / "images" / "debian-12-python.tar"
    with making(layer):
        if layer.exists():
            return layer
        with _made(layer) as directory:
            command = ["debootstrap", "--variant=minbase", f"--include={_INCLUDED}", "bookworm", str(directory)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for name in _NOT_NEEDED:
                shutil.rmtree(directory / name, ignore_errors=True)
    return layer


def _packages() -> Path:
    """The packages of this interpreter that the package `finetune` needs without its extras, and the report's plots."""
    closure = _closure(["finetune", "matplotlib"])
    versions = "\n".join(f"{name} {found.version}" for name, found in sorted(closure.items()))
    layer = CACHE / "images" / f"packages-{hashlib.sha256(versions.encode()).hexdigest()[:16]}.tar"
    with making(layer):
        if layer.exists():
            return layer
        with _made(layer) as directory:
            for found in closure.values():
                for file in found.files or ():
                    source, target = Path(str(found.locate_file(file))), directory / _PACKAGES / file
                    skipped = {"..", "tests", "__pycache__"} & set(file.parts)
                    if not skipped and source.is_file():
                        target.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(source, target)
            compileall.compile_dir(directory, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    return layer


def _closure(roots: Sequence[str]) -> dict[str, Distribution]:
    """Distributions, and all that they need, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(root, "") for root in roots]
    while waiting:
        name, extra = waiting.pop()
        if f"{name}[{extra}]" in found:
            continue
        found[f"{name}[{extra}]"] = known = distribution(name)
        for each in map(Requirement, known.requires or ()):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                waiting += [(each.name, wanted) for wanted in ("", *each.extras)]
    return found


@contextmanager
def _made(layer: Path) -> Iterator[Path]:
    """A directory to be filled, which then becomes the layer."""
    layer.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=layer.parent) as place:
        directory, whole = Path(place, "root"), Path(place, "layer.tar")
        directory.mkdir()
        yield directory
        with tarfile.open(whole, "w") as tar:
            tar.add(directory, ".")
        whole.rename(layer)
