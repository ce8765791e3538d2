"""Container images as archives: of layers, as `docker save` writes them, or of what describes an image alone."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_USER = "65532:65532"

Layer = Mapping[str, Path] | Path
"""Files and directories of this machine by their path in the image, or a layer that is a tar already."""


@dataclass(frozen=True)
class StoredImage:
    """An image in the store of a builder on this machine."""

    name: str
    """With its digest, which is the manifest's."""
    manifest: bytes
    config: bytes
    layers: tuple[tuple[str, Path], ...]
    """The lowest first: the digest of its tar, and the directory that it is unpacked in."""


def archive(
    path: Path,
    name: str,
    layers: Sequence[Layer],
    *,
    entrypoint: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> Path:
    """Writes an image; its path.

    Args:
        path: of the archive.
        name: the image's, with its tag.
        layers: the lowest first.
        entrypoint: in exec form.
        environment: its variables.
    """
    tars = [layer if isinstance(layer, Path) else _layer(layer) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {
            "Entrypoint": list(entrypoint),
            "User": _USER,
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


def description(path: Path, image: StoredImage) -> Path:
    """Writes an OCI archive of an image's manifest and config, for a runtime that has the layers; its path."""
    manifest = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": f"sha256:{_sha256(image.manifest)}",
        "size": len(image.manifest),
        "annotations": {"io.containerd.image.name": image.name},
    }
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", json.dumps({"imageLayoutVersion": "1.0.0"}).encode())
        _add(tar, "index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest]}).encode())
        for blob in (image.manifest, image.config):
            _add(tar, f"blobs/sha256/{_sha256(blob)}", blob)
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
