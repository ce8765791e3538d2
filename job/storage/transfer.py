"""Many files at once."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from job.contract.errors import NoInputError
from job.storage import Progress, Stat, Storage, Uploaded, no_progress
from job.storage.local_files import local_errors

Task = TypeVar("Task")
Result = TypeVar("Result")

# A file above this is moved alone, its parts in parallel; those below go side by side. So memory stays bounded.
_LARGE_BYTES = 8 << 20
_AT_A_TIME = 16


def download_all(files: Iterable[tuple[Storage, Stat, Path]], progress: Progress = no_progress) -> None:
    """Fetch each object to its path, as `Storage.download` does.

    `progress` is called by one thread at a time.

    Raises:
        JobError: the first that a file raised; files that are whole by then stay.
    """
    told = one_at_a_time(progress)
    each_file(lambda file: file[0].download(file[1], file[2], told), files, lambda file: file[1].size)


def upload_directory(
    directory: Path, storage: Storage, prefix: str, progress: Progress = no_progress
) -> list[tuple[str, Uploaded]]:
    """Send every file below `directory` to `prefix` and its path there.

    Returns:
        The relative path, with forward slashes, and the confirmed object of each, sorted by path.

    Raises:
        NoInputError: there is no file.
        JobError: what `Storage.upload` raises.
    """
    told = one_at_a_time(progress)
    with local_errors(directory):
        sizes = {
            path.relative_to(directory).as_posix(): path.stat().st_size
            for path in directory.rglob("*")
            if path.is_file()
        }
    if not sizes:
        raise NoInputError(f"{directory} holds no file")
    sent = each_file(
        lambda name: (name, storage.upload(directory / name, f"{prefix}{name}", told)), sorted(sizes), sizes.__getitem__
    )
    return sorted(sent, key=lambda pair: pair[0])


def each_file(move: Callable[[Task], Result], files: Iterable[Task], size: Callable[[Task], int]) -> list[Result]:
    """What `move` gives for each file: small ones first and side by side, then the large ones one by one.

    Args:
        move: of one file; called by many threads.
        files: in any order.
        size: of a file, in bytes.
    """
    small: list[Task] = []
    large: list[Task] = []
    for file in files:
        (large if size(file) > _LARGE_BYTES else small).append(file)
    with ThreadPoolExecutor(_AT_A_TIME, "files") as workers:
        try:
            moved = list(workers.map(move, small))
        finally:
            workers.shutdown(cancel_futures=True)
    return moved + [move(file) for file in large]


def one_at_a_time(progress: Progress) -> Progress:
    """A progress that many threads may call; it tells `progress` by one of them at a time."""
    lock = threading.Lock()

    def told(size: int) -> None:
        with lock:
            progress(size)

    return told
