"""`make cluster`, `make cluster-down`: a cluster on this machine that `make launch` finds by itself."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from examples.cluster import shipped, standin
from examples.cluster.control_plane import binaries
from examples.cluster.images import StoredImage
from examples.cluster.machine import machine
from examples.cluster.network import remove_abandoned
from examples.cluster.node import Node, missing
from examples.cluster.site import furnish
from examples.demo.__main__ import ROOT

DIRECTORY = Path("build/cluster")


def main(argv: Sequence[str]) -> int:
    """`up` and `down`, `run`, the process in between, and `build`, which makes what a cluster needs and no cluster."""
    parser = argparse.ArgumentParser(prog="python -m examples.cluster")
    parser.add_argument("command", choices=["up", "run", "down", "build"])
    parser.add_argument("directory", nargs="?", type=Path, default=DIRECTORY, help=f"all that is kept [{DIRECTORY}]")
    parser.add_argument("--stand-in", action="store_true", help="a trainer that only pretends, there in half a minute")
    flags = parser.parse_args(argv)
    directory: Path = flags.directory.absolute()
    if flags.command == "down":
        return down(directory)
    if flags.command == "build":
        build(flags.stand_in)
        return 0
    return {"up": up, "run": run}[flags.command](directory, flags.stand_in)


def up(directory: Path, stand_in: bool) -> int:
    """Starts the process that holds the cluster, and returns when all is there."""
    if _holder(directory):
        print(f"the cluster runs already; `make cluster-down` ends it. {_USE}")
        return 0
    shutil.rmtree(directory / "machine", ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("ready", "environment"):  # of one that was killed
        (directory / name).unlink(missing_ok=True)
    log = directory / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "examples.cluster", "run", str(directory)]
        command += ["--stand-in"] if stand_in else []
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    (directory / "pid").write_text(str(process.pid))
    told = 0
    while True:
        lines = log.read_text(errors="replace").splitlines()
        for line in lines[told:]:
            print(line, file=sys.stderr)
        told = len(lines)
        if process.poll() is not None:
            (directory / "pid").unlink(missing_ok=True)
            return 1
        if (directory / "ready").exists():
            print(_USE)
            return 0
        time.sleep(0.3)


def run(directory: Path, stand_in: bool) -> int:
    """Holds the cluster until it is told to end."""
    ready = directory / "ready"
    ready.unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (directory / "machine").mkdir(parents=True, exist_ok=True)
    image = build(stand_in)
    if lacking := missing():
        print(f"no node, pods stay Pending: this takes {lacking}", flush=True)
    try:
        with machine(directory / "machine", directory / "s3", ROOT.removeprefix("s3://")) as running:
            print("the control plane and S3 answer", flush=True)
            name = bring_image(running.node, image) if running.node else standin.IMAGE
            print("bringing in k8s/base and the demo's inputs", flush=True)
            environment = furnish(running, directory / "site", name)
            (directory / "environment").write_text(
                "".join(f"export {each}={text}\n" for each, text in environment.items())
            )
            ready.touch()
            signal.pause()
    finally:
        for name in ("ready", "environment", "pid"):
            (directory / name).unlink(missing_ok=True)
        shutil.rmtree(directory / "machine", ignore_errors=True)
    return 0


def build(stand_in: bool) -> StoredImage | None:
    """Builds what is not there yet of Kubernetes and the trainer's image, side by side: on first use both take minutes.

    The image that ships; None where a stand-in takes its place.
    """
    with ThreadPoolExecutor() as builders:
        kubernetes = builders.submit(binaries)
        built = None if stand_in or os.geteuid() or shipped.missing() else builders.submit(build_image)
        kubernetes.result()
        return built.result() if built else None


def bring_image(node: Node, image: StoredImage | None) -> str:
    """Brings the trainer's image to a node, a stand-in where there is none; its name."""
    if lacking := shipped.missing():
        print(f"the trainer is a stand-in, which trains nothing: the real one takes {lacking}", flush=True)
    if image is None:
        node.load(standin.build(node.directory / "stand-in.tar"))
        return standin.IMAGE
    node.lend(image)
    return image.name


def build_image() -> StoredImage:
    """Builds the image that ships, and says how long that may take."""
    print("building the trainer's image: 15 minutes on first use, then what has changed", file=sys.stderr, flush=True)
    return shipped.build()


def down(directory: Path) -> int:
    """Ends the cluster and waits until nothing of it is left; what S3 holds stays."""
    if holder := _holder(directory):
        os.kill(holder, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{holder}").exists():
            if time.monotonic() > deadline:
                os.kill(holder, signal.SIGKILL)  # its children end with it
                break
            time.sleep(0.2)
    if os.geteuid() == 0:
        remove_abandoned()
    (directory / "environment").unlink(missing_ok=True)
    shutil.rmtree(directory / "machine", ignore_errors=True)
    return 0


def _holder(directory: Path) -> int | None:
    """The process that holds the cluster."""
    try:
        pid = int((directory / "pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return pid if b"examples.cluster" in command else None


_USE = "Now: make launch CONFIG=examples/demo.yaml (and: . build/cluster/environment, for kubectl and finetune)"
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
