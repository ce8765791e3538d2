"""The protocol, over a directory and over S3 alike."""

import random
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from job.contract.errors import ConfigError, DataError, NoInputError
from job.storage import Stat, Storage
from job.storage.canary import probe
from job.storage.opening import locate, open_storage
from job.storage.transfer import download_all, upload_directory

LARGE = (8 << 20) * 2 + 12345  # three parts, the last one odd


@pytest.fixture(params=["directory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "directory" else str(request.getfixturevalue("bucket"))


@pytest.fixture
def storage(root: str) -> Storage:
    return open_storage(root)


class Model(RuleBasedStateMachine):
    """A storage beside a dictionary: whatever is put, both answer the same."""

    opened: Callable[[], Storage]
    keys = st.sampled_from(["a", "b", "d/a", "d/b", "d/e/a", "da", "ü %2F+&"])
    bodies = st.binary(max_size=8) | st.just(b"x" * 3_000_000)

    def __init__(self) -> None:
        super().__init__()
        self.storage = self.opened()
        self.held: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}

    def holds(self, key: str, body: bytes, stat: Stat) -> None:
        assert (stat.key, stat.size) == (key, len(body))
        self.held[key], self.tags[key] = body, stat.etag

    @rule(key=keys, body=bodies)
    def put(self, key: str, body: bytes) -> None:
        self.holds(key, body, self.storage.put(key, body))

    @rule(key=keys, body=bodies)
    def put_if_absent(self, key: str, body: bytes) -> None:
        stat = self.storage.put_if_absent(key, body)
        if self.held.get(key, body) == body:
            assert stat is not None
            self.holds(key, body, stat)
        else:
            assert stat is None

    @rule(key=keys, body=bodies, stale=st.booleans())
    def put_if_match(self, key: str, body: bytes, stale: bool) -> None:
        stat = self.storage.put_if_match(key, body, "0" * 32 if stale else self.tags.get(key, "0" * 32))
        if key in self.held and (not stale or self.held[key] == body):
            assert stat is not None
            self.holds(key, body, stat)
        else:
            assert stat is None

    @rule(key=keys)
    def read(self, key: str) -> None:
        found = self.storage.get(key)
        assert (found[0] if found else None) == self.held.get(key)
        assert (found[1].etag if found else None) == self.tags.get(key)

    @rule(key=keys, start=st.integers(0, 6), length=st.integers(1, 6))
    def read_range(self, key: str, start: int, length: int) -> None:
        if start + length <= len(self.held.get(key, b"")):
            body = self.storage.read_range(key, start, length, self.tags[key])
            assert body == self.held[key][start : start + length]

    @rule(prefix=st.sampled_from(["", "d", "d/", "d/e", "a", "none/"]))
    def list(self, prefix: str) -> None:
        found = {stat.key: (stat.size, stat.etag) for stat in self.storage.list(prefix)}
        assert found == {k: (len(v), self.tags[k]) for k, v in self.held.items() if k.startswith(prefix)}
        assert [*found] == sorted(found)

    @invariant()
    def heads_agree(self) -> None:
        for key in ("a", "d/e/a", "d"):
            stat = self.storage.head(key)
            assert (stat.etag if stat else None) == self.tags.get(key)


def test_it_answers_as_a_dictionary_would(root: str) -> None:
    class Opened(Model):
        @staticmethod
        def opened() -> Storage:
            return open_storage(f"{root}/{uuid4().hex}")

    # Each step asks a real server; what it holds grows by a prefix an example.
    run_state_machine_as_test(Opened, settings=settings(max_examples=10, stateful_step_count=20, deadline=None))


def test_of_twenty_that_put_if_absent_one_wins(storage: Storage) -> None:
    bodies = [f"{number}".encode() for number in range(20)]
    with ThreadPoolExecutor(20) as racers:
        won = list(racers.map(lambda body: storage.put_if_absent("claim", body), bodies))
    winners = [body for body, stat in zip(bodies, won, strict=True) if stat]
    found = storage.get("claim")
    assert found is not None
    assert winners == [found[0]]


def test_of_twenty_that_put_if_match_one_wins_each_round(storage: Storage) -> None:
    stat = storage.put("lease", b"0")
    for round_ in range(1, 4):
        bodies = [f"{round_}:{number}".encode() for number in range(20)]
        with ThreadPoolExecutor(20) as racers:
            won = list(racers.map(lambda body, tag=stat.etag: storage.put_if_match("lease", body, tag), bodies))
        winners = [body for body, stat in zip(bodies, won, strict=True) if stat]
        found = storage.get("lease")
        assert found is not None
        assert winners == [found[0]]
        stat = found[1]


def test_processes_share_the_lock_of_a_directory(tmp_path: Path) -> None:
    count = "\n".join(
        (
            "import sys",
            "from job.storage.opening import open_storage",
            "storage = open_storage(sys.argv[1])",
            "for _ in range(25):",
            "    while True:",
            "        body, stat = storage.get('count')",
            "        if storage.put_if_match('count', b'%d %d' % (int(body.split()[0]) + 1, int(sys.argv[2])), stat.etag): break",
        )
    )
    storage = open_storage(str(tmp_path))
    storage.put("count", b"0 0")
    processes = [subprocess.Popen([sys.executable, "-c", count, str(tmp_path), str(pid)]) for pid in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    found = storage.get("count")
    assert found is not None
    assert found[0].split()[0] == b"75"


@pytest.mark.parametrize("size", [0, 1, 1 << 20, LARGE])
def test_a_file_goes_up_and_comes_down_as_it_was(storage: Storage, size: int, tmp_path: Path) -> None:
    body = random.Random(size).randbytes(size)
    sent, got = tmp_path / "sent", tmp_path / "deep/got"
    sent.write_bytes(body)
    up: list[int] = []
    down: list[int] = []
    uploaded = storage.upload(sent, "dir/file", up.append)
    storage.download(uploaded.stat, got, down.append)
    assert got.read_bytes() == body
    assert uploaded.sha256 == sha256(body).hexdigest()
    assert sum(up) == sum(down) == size
    assert [path.name for path in got.parent.iterdir()] == ["got"]
    found = storage.head("dir/file")
    assert found is not None
    assert (found.size, found.etag, found.checksum) == (size, uploaded.stat.etag, uploaded.stat.checksum)
    assert abs(found.last_modified - datetime.now(UTC)) < timedelta(minutes=5)
    if size:
        assert storage.read_range("dir/file", size - 1, 1, found.etag) == body[-1:]


def test_a_directory_goes_up_and_comes_down_whole(storage: Storage, tmp_path: Path) -> None:
    files = {f"{number % 7}/{number}.txt": f"{number}".encode() * number for number in range(60)}
    files["big.bin"] = random.Random(0).randbytes(LARGE)
    for name, body in files.items():
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_bytes(body)
    moved: list[int] = []
    uploaded = upload_directory(tmp_path / "from", storage, "up/", moved.append)
    assert [name for name, _ in uploaded] == sorted(files)
    assert {stat.key for stat in storage.list("up/")} == {f"up/{name}" for name in files}
    download_all([(storage, sent.stat, tmp_path / "to" / name) for name, sent in uploaded], moved.append)
    assert {name: (tmp_path / "to" / name).read_bytes() for name in files} == files
    assert sum(moved) == 2 * sum(map(len, files.values()))


def test_an_empty_directory_is_nothing_to_upload(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no file"):
        upload_directory(tmp_path, storage, "up/")


@pytest.mark.parametrize("size", [10, 1 << 21, LARGE])
def test_an_object_that_changed_is_neither_downloaded_nor_read(storage: Storage, size: int, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1" * size)
    stat = storage.upload(tmp_path / "one", "key").stat
    (tmp_path / "two").write_bytes(b"2" * size)
    storage.upload(tmp_path / "two", "key")
    with pytest.raises(DataError, match="changed"):
        storage.download(stat, tmp_path / "got")
    with pytest.raises(DataError, match="changed"):
        storage.read_range("key", 0, 10, stat.etag)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["one", "two"]


UNSAFE = ["", "..", "../a", "a/../b", "/a", "a//b", "a/", "./a", "a\nb", "a\0b"]


@pytest.mark.parametrize("key", UNSAFE)
def test_a_key_that_leaves_the_root_or_breaks_a_line_is_refused(storage: Storage, key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for use in (
        lambda: storage.head(key),
        lambda: storage.get(key),
        lambda: storage.put(key, b"x"),
        lambda: storage.put_if_absent(key, b"x"),
        lambda: storage.put_if_match(key, b"x", "0"),
        lambda: storage.read_range(key, 0, 1, "0"),
        lambda: storage.upload(tmp_path / "file", key),
        lambda: storage.download(Stat(key, 1, "0", datetime.now(UTC)), tmp_path / "got"),
    ):
        with pytest.raises(DataError, match="not safe to use"):
            use()


def test_a_range_beyond_the_end_is_an_error(storage: Storage) -> None:
    stat = storage.put("key", b"abc")
    with pytest.raises(DataError):
        storage.read_range("key", 2, 2, stat.etag)


def test_the_canary_passes_and_tells_the_time(storage: Storage) -> None:
    now = probe(storage, "runs/x/canary/1").last_modified
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=5)
    assert [stat.key for stat in storage.list("")] == ["runs/x/canary/1"]


def test_a_uri_is_located(root: str) -> None:
    locate(f"{root}/a/b")[0].put(locate(f"{root}/a/b")[1], b"x")
    storage, key = locate(f"{root}/a/b")
    assert f"{storage.uri}/{key}" == f"{root}/a/b"
    storage, prefix = locate(f"{root}/a/")
    assert [stat.key.removeprefix(prefix) for stat in storage.list(prefix)] == ["b"]
    assert [stat.key for stat in open_storage(root).list("")] == ["a/b"]
    assert open_storage(f"{root}/").uri == root


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3://", "s3://UPPER/x", "s3://a/x"])
def test_what_is_no_storage_is_said(uri: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(uri)):
        open_storage(uri)


KILLED = """
import sys
from pathlib import Path
from job.storage.opening import open_storage
storage, moved = open_storage(sys.argv[1]), 0
def tell(size):
    global moved
    moved += size
    if moved >= 8 << 20:
        print("moving", flush=True)
        sys.stdin.read()
if sys.argv[2] == "upload":
    storage.upload(Path(sys.argv[3]), "big", tell)
else:
    storage.download(storage.head("big"), Path(sys.argv[3]), tell)
"""


@pytest.mark.parametrize("way", ["upload", "download"])
def test_a_process_that_is_killed_leaves_nothing_half_written(root: str, way: str, tmp_path: Path) -> None:
    storage, file, got = open_storage(root), tmp_path / "file", tmp_path / "got"
    file.write_bytes(random.Random(1).randbytes(LARGE))
    if way == "download":
        storage.upload(file, "big")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, root, way, file if way == "upload" else got],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"moving\n"
        process.kill()
    assert not got.exists()
    assert [stat.key for stat in storage.list("")] == (["big"] if way == "download" else [])
    assert (storage.head("big") is None) == (way == "upload")
    stat = storage.upload(file, "big").stat
    storage.download(stat, got)
    assert got.read_bytes() == file.read_bytes()


def kill_an_upload(root: str, file: Path) -> None:
    """A process that is killed while it sends a file to `big`."""
    command = [sys.executable, "-c", KILLED, root, "upload", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"moving\n"
        process.kill()


def test_what_killed_uploads_leave_is_ended_below_a_prefix_alone(root: str, tmp_path: Path) -> None:
    storage, file = open_storage(root), tmp_path / "file"
    file.write_bytes(random.Random(1).randbytes(LARGE))
    storage.put("runs/a/attempts/1/whole", b"x")
    for prefix in ("runs/a/attempts/1", "runs/a/attempts/1", "runs/a/attempts/10"):
        kill_an_upload(f"{root}/{prefix}", file)
    assert storage.end_uploads("runs/b/") == 0
    assert storage.end_uploads("runs/a/attempts/1/") == 2
    assert storage.end_uploads("runs/a/attempts/1/") == 0
    assert storage.end_uploads("runs/a/attempts/") == 1
    assert [stat.key for stat in storage.list("")] == ["runs/a/attempts/1/whole"]
