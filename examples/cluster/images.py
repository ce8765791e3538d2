"""Container images without a builder: a tar of layers, as `docker save` writes it and every runtime imports it."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

Layer = Mapping[str, Path] | Path
"""Files and directories of this machine by their path in the image, or a layer that is a tar already."""


def archive(
    path: Path,
    name: str,
    layers: Sequence[Layer],
    *,
    entrypoint: Sequence[str],
    user: str = "65532:65532",
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Writes an image; its path.

    Args:
        path: of the archive.
        name: the image's, with its tag.
        layers: the lowest first.
        entrypoint: in exec form.
        user: uid and gid.
        environment: its variables.
    """
    tars = [layer if isinstance(layer, Path) else _layer(layer) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": list(entrypoint),
            "User": user,
            "Env": [f"{key}={value}" for key, value in (environment or {}).items()],
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(tar)}" for tar in tars]},
    }
    names = [f"layer{number}.tar" for number in range(len(tars))]
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": names}]
    with tarfile.open(path, "w") as image:
        _add(image, "config.json", json.dumps(config).encode())
        for each, tar in zip(names, tars, strict=True):
            if isinstance(tar, Path):
                image.add(tar, each)
            else:
                _add(image, each, tar)
        _add(image, "manifest.json", json.dumps(manifest).encode())
    return path


def _layer(files: Mapping[str, Path]) -> bytes:
    """A small layer, owned by root and without times: the same files are the same layer."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return None if "__pycache__" in entry.name else entry

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for inside, path in files.items():
            tar.add(path, inside, filter=plain)
    return layer.getvalue()


def _sha256(tar: bytes | Path) -> str:
    if isinstance(tar, bytes):
        return hashlib.sha256(tar).hexdigest()
    with tar.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(image: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    image.addfile(entry, io.BytesIO(data))
