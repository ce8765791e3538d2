"""Somebody who looks at a store all the time, straight, and believes what its commit marks say."""

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from job.contract.documents import Artifact, Checkpoint, Latest, Published, Result
from job.contract.keys import RunKeys, indexed
from job.contract.model import sha256_hex
from job.storage import Stat
from job.storage.opening import open_storage

_SECONDS = 0.02
Named = Mapping[str, Artifact | None]
"""What a mark promises: keys, and what lies there where it says so."""


def _artifacts(files: tuple[Artifact, ...]) -> Named:
    return {file.key: file for file in files}


_MARKS: dict[str, Callable[[bytes], Named]] = {
    "result.json": lambda body: _artifacts(Result.model_validate_json(body).artifacts.all()),
    "published.json": lambda body: _artifacts(Published.model_validate_json(body).files),
    "complete.json": lambda body: _artifacts(Checkpoint.model_validate_json(body).files),
    "latest.json": lambda body: {RunKeys(Latest.model_validate_json(body).run_id).result: None},
}


class Reader:
    """Within the block each commit mark of a root holds, at each look: what it names is there, with its bytes.

    A mark never goes, and a result never changes.
    """

    def __init__(self, root: str) -> None:
        self.storage = open_storage(root)
        self.looks = 0
        self._marks: dict[str, tuple[str, Named]] = {}
        self._held: set[tuple[str, str]] = set()
        self._untrue: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_until_over)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        for _ in range(2):  # what the first of them sees, the second one judges
            self.look()
        assert not self._untrue, self._untrue

    def settle(self) -> None:
        """Returns when it has seen all that is there now."""
        before = self.looks
        while self._thread.is_alive() and self.looks < before + 2:
            time.sleep(_SECONDS)

    def marks(self, name: str) -> list[str]:
        """The keys of the marks of that name which were seen."""
        return sorted(key for key in self._marks if key.endswith(f"/{name}"))

    def look(self) -> None:
        """Judges the marks that an earlier look saw by a listing that is newer than all of them."""
        there = {stat.key: stat for stat in self.storage.list("")}
        for mark, (_, named) in self._marks.items():
            if mark not in there:
                self._untrue.append(f"{mark} has gone")
            self._untrue += [f"{mark}: {key} {why}" for key in named if (why := self._wrong(there, key, named[key]))]
        for key, stat in there.items():
            if reads := _reads(key):
                self._read(key, stat, reads)
        self.looks += 1

    def _read(self, key: str, stat: Stat, reads: Callable[[bytes], Named]) -> None:
        seen, _ = self._marks.get(key, (None, None))
        if seen == stat.etag:
            return
        if seen and key.endswith("/result.json"):
            self._untrue.append(f"{key} has changed")
        if found := self.storage.get(key):
            self._marks[key] = found[1].etag, reads(found[0])

    def _wrong(self, there: Mapping[str, Stat], key: str, artifact: Artifact | None) -> str | None:
        if key not in there:
            return "is not there"
        etag = there[key].etag
        if artifact is None or (key, etag) in self._held:
            return None
        found = self.storage.get(key)
        if found is None or (len(found[0]), sha256_hex(found[0])) != (artifact.size, artifact.sha256):
            return "is another"
        self._held.add((key, etag))
        return None

    def _look_until_over(self) -> None:
        try:
            while not self._over.wait(_SECONDS):
                self.look()
        except Exception as error:
            self._untrue.append(repr(error))


def _reads(key: str) -> Callable[[bytes], Named] | None:
    """What a mark says to whoever reads it; None for any other object."""
    if entry := indexed(key):
        return lambda _: {RunKeys(entry[2]).result: None}
    return _MARKS.get(key.rpartition("/")[2])
