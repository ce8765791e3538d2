"""A bridge that carries an address of this machine which pods reach."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "finetune"


@dataclass(frozen=True)
class Network:
    """The network of one node's pods."""

    bridge: str
    number: int

    @property
    def address(self) -> str:
        """This machine's, on the bridge. The kubelet refuses one of the loopback."""
        return f"10.244.{self.number}.1"

    @property
    def subnet(self) -> str:
        """Its pods'."""
        return f"10.244.{self.number}.0/24"


@contextmanager
def network() -> Iterator[Network]:
    """A bridge of a number that nobody else has, gone with the block. Needs root."""
    remove_abandoned()
    found = next(made for number in range(256) if (made := _make(Network(f"{_PREFIX}{number}", number))))
    try:
        yield found
    finally:
        _ip("link", "delete", found.bridge)


def remove_abandoned() -> None:
    """Removes the bridges whose owner was killed."""
    for bridge in Path("/sys/class/net").glob(f"{_PREFIX}*"):
        try:
            owner = (bridge / "ifalias").read_text().strip()
        except OSError:  # its owner has just removed it
            continue
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _ip("link", "delete", bridge.name)


def _make(wanted: Network) -> Network | None:
    if not _ip("link", "add", wanted.bridge, "type", "bridge"):
        return None  # somebody else has it
    _ip("link", "set", "dev", wanted.bridge, "alias", str(os.getpid()))
    _ip("address", "add", f"{wanted.address}/24", "dev", wanted.bridge)
    _ip("link", "set", wanted.bridge, "up")
    return wanted


def _ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0
