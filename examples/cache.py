"""What is made once on a machine, and outlives `make clean`."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"


@contextmanager
def making(place: Path) -> Iterator[None]:
    """In the block nobody else on this machine makes `place`: who wants it meanwhile waits, and then finds it there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
