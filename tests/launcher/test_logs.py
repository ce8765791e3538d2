"""Promise 37: the log across pods and attempts, no line doubled, none lost silently, the end seen while a stream hangs.

The API server here is a small one of the test, on a real socket: its answers can be cut, rotated and hung at any byte.
"""

import gzip
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from kubernetes import client

from job.attempt import Attempt
from job.contract.config import Dataset, Recipe, Training
from job.contract.documents import Claim, FrozenDataset, FrozenModel, Spec
from job.contract.errors import NoInputError, PermissionDenied
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes
from job.logs import JsonLines, configure
from job.run import Run
from job.stages import Stages
from job.storage import Storage
from job.storage.opening import open_storage
from launcher.cluster import Cluster
from launcher.kube import Api
from launcher.log_lines import Deduplicator, Gap, LogLine, Told, chunk_lines
from launcher.logs import follow, so_far, stored
from launcher.pod_log import Pace
from tests.attempts import never_overtaken

Json = dict[str, Any]
Line = tuple[int, str]

RUN = "bot-0123456789"
KEYS = RunKeys(RUN)
START = 1_772_366_400 * 10**9  # 2026-03-01T12:00:00Z
STEP = 10**8
PACE = Pace(poll_seconds=0.2, silence_seconds=0.5)
PATIENT = Pace(poll_seconds=0.2, silence_seconds=3600)
"""By it no stream is ever silent."""


def as_time(nanoseconds: int) -> str:
    """As the kubelet writes it."""
    seconds, fraction = divmod(nanoseconds, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{fraction:09}Z"


def as_nanoseconds(since: str) -> int:
    return int(datetime.fromisoformat(since).timestamp()) * 10**9


def numbered(first: int, last: int) -> list[Line]:
    return [(START + n * STEP, f"line {n}") for n in range(first, last + 1)]


def texts(told: list[Told]) -> list[str]:
    """Of the lines; a gap is `...`."""
    return [one.text if isinstance(one, LogLine) else "..." for one in told]


# What is told of one log, by the times in it


def deliver(lines: Deduplicator, log: list[Line], count: int | None) -> list[Told]:
    """What is told when a stream of the log is cut after so many lines."""
    lines.resume()
    since = as_nanoseconds(lines.since) if lines.since else 0
    again = [(when, text) for when, text in log if when >= since]
    return [told for when, text in again[:count] for told in lines.take(f"{as_time(when)} {text}".encode())]


GAPS = st.sampled_from([0, 1, 10**8, 10**9 - 1, 10**9, 3 * 10**9])
LOGS = st.lists(st.tuples(GAPS, st.sampled_from(["", "a", "b", "b b"])), max_size=15)
CUTS = st.lists(st.integers(0, 15), max_size=8)


def log_of(steps: list[tuple[int, str]]) -> list[Line]:
    now, log = START, []
    for step, text in steps:
        now += step
        log.append((now, text))
    return log


@given(LOGS, CUTS)
def test_promise_37_a_log_that_is_cut_anywhere_is_told_exactly(steps: list[tuple[int, str]], cuts: list[int]) -> None:
    log, lines = log_of(steps), Deduplicator("pod", "s3://kept")
    told = [one for cut in [*cuts, None] for one in deliver(lines, log, cut)]
    assert told == [LogLine("pod", as_time(when), text) for when, text in log]
    assert lines.end() == []


@given(LOGS, st.lists(st.sampled_from([0, 1, 10**8, 10**9 - 1]), min_size=15, max_size=15), CUTS)
def test_promise_37_lines_a_little_out_of_order_are_told_once(
    steps: list[tuple[int, str]], late: list[int], cuts: list[int]
) -> None:
    """stdout and stderr are two writers of one log."""
    log = [(when - by, text) for (when, text), by in zip(log_of(steps), late, strict=False)]
    lines = Deduplicator("pod", "s3://kept")
    told = [one for cut in [*cuts, None] for one in deliver(lines, log, cut)]
    assert told == [LogLine("pod", as_time(when), text) for when, text in log]
    assert lines.end() == []


@given(st.integers(1, 20), st.integers(0, 20), st.integers(0, 20))
def test_promise_37_what_a_rotation_takes_is_a_gap(count: int, cut: int, taken: int) -> None:
    log, lines = numbered(1, count), Deduplicator("pod", "s3://kept")
    before = deliver(lines, log, cut)
    after = deliver(lines, log[taken:], None) + lines.end()
    lost = range(min(cut, count) + 1, min(taken, count) + 1)
    assert [text for text in texts(before + after) if text != "..."] == [
        text for n, (_, text) in enumerate(log, 1) if n not in lost
    ]
    if lost and cut:  # before the first line nothing is known to be missing
        assert texts(after)[0] == "..."
        assert isinstance(after[0], Gap)
        assert after[0].after == as_time(log[cut - 1][0])
    if taken < min(cut, count):
        assert "..." not in texts(after)


def test_promise_37_the_end_of_a_long_line_is_no_line_of_its_own() -> None:
    """The kubelet writes a time before the first part of a line alone, and a stream may begin at a later part."""
    lines = Deduplicator("pod", "s3://kept")
    deliver(lines, numbered(1, 2), None)
    lines.resume()
    assert lines.take(b"the end of it") == []
    assert lines.take(f"{as_time(START + 2 * STEP)} line 2".encode()) == []
    assert texts(lines.take(f"{as_time(START + 3 * STEP)} line 3".encode())) == ["line 3"]


def test_a_time_may_have_any_zone_and_fraction() -> None:
    lines = Deduplicator("pod", "")
    assert lines.take(b"2026-03-01T13:00:00.5+01:00 a b") == [LogLine("pod", "2026-03-01T13:00:00.5+01:00", "a b")]
    assert lines.since == "2026-03-01T11:59:59Z"
    lines.resume()
    assert lines.take(b"2026-03-01T12:00:00.500000000Z a b") == []


def test_a_gap_says_where_the_rest_is() -> None:
    gap = Gap("pod", "12:00", "12:05", "the log was rotated", "s3://kept/")
    for words in ("after 12:00 before 12:05", "rotated", "s3://kept/"):
        assert words in gap.text


# What the store holds


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "runs"))


def claim(storage: Storage, number: int, pod: str | None) -> None:
    body = Claim(attempt=number, spec_sha256="0" * 64, owner="o", job_uid="u1", pod=pod)
    storage.put(KEYS.attempt(number).claim, canonical_bytes(body))


def put_chunk(storage: Storage, attempt: int, chunk: int, *lines: str) -> None:
    body = "".join(f"{json.dumps({'event': line, 'at': '2026-03-01T12:00:00Z'})}\n" for line in lines)
    storage.put(KEYS.attempt(attempt).log(chunk), gzip.compress(body.encode()))


def events(told: list[Told]) -> list[tuple[str, str]]:
    return [(one.source, json.loads(one.text)["event"] if isinstance(one, LogLine) else "...") for one in told]


def test_promise_37_the_store_has_what_the_pod_wrote(storage: Storage) -> None:
    recipe = Recipe(name="bot", base_model="/base", dataset=Dataset(train="/rows"), training=Training(max_steps=1))
    model, dataset = FrozenModel(uri="/base", files=()), FrozenDataset(train=())
    spec = Spec(recipe=recipe, gpus=0, base_model=model, dataset=dataset, image=None, code_version="1")
    stdout = io.StringIO()
    buffer = configure(JsonLines(stdout), {})
    try:
        claim(storage, 1, "p1")
        with Attempt(Run(storage, spec, RUN), 1, Stages(), buffer, 0.01, never_overtaken):
            structlog.get_logger().info("said", text="grüße")
    finally:
        structlog.reset_defaults()
    told = [*stored(storage, RUN)]
    assert [one.text for one in told] == stdout.getvalue().splitlines()
    assert [json.loads(one.text)["at"] for one in told] == [one.time for one in told if isinstance(one, LogLine)]
    assert {"attempt", "said", "outcome"} <= {event for _, event in events(told)}
    assert {one.source for one in told} == {"attempt 1"}


def test_promise_37_attempts_and_chunks_come_in_order(storage: Storage) -> None:
    for number in (1, 2, 10):  # 10 is no attempt: numbers have no gaps
        claim(storage, number, None)
        put_chunk(storage, number, 1, f"{number}.1", f"{number}.2")
        put_chunk(storage, number, 2, f"{number}.3")
    assert [event for _, event in events([*stored(storage, RUN)])] == ["1.1", "1.2", "1.3", "2.1", "2.2", "2.3"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "no gzip", "empty"])
def test_promise_37_a_damaged_chunk_is_a_gap(storage: Storage, damage: str) -> None:
    claim(storage, 1, None)
    for number in (1, 2, 3):
        put_chunk(storage, 1, number, *(f"{number}.{n}" for n in range(2000)))
    key = KEYS.attempt(1).log(2)
    found = storage.get(key)
    assert found
    whole = found[0]
    middle = len(whole) // 2
    bad = {
        "cut": whole[:middle],
        "flipped": whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:],  # of its checksum
        "no gzip": b"nothing",
        "empty": b"",
    }
    storage.put(key, bad[damage])
    told = events([*stored(storage, RUN)])
    first, last = ([("attempt 1", f"{n}.{line}") for line in range(2000)] for n in (1, 3))
    assert (told[:2000], told[-2000:]) == (first, last)
    *saved, gap = told[2000:-2000]
    assert gap == ("attempt 1", "...")
    assert saved == [("attempt 1", f"2.{line}") for line in range(len(saved))]
    assert bool(saved) == (damage in ("cut", "flipped"))


def test_what_is_no_json_is_a_line_without_a_time() -> None:
    assert chunk_lines(gzip.compress(b"oh\n[1]\n"), "attempt 1", "") == [
        LogLine("attempt 1", "", "oh"),
        LogLine("attempt 1", "", "[1]"),
    ]


# A run that is followed


@dataclass
class Stream:
    """How one followed stream goes: it ends after so many bytes, or with the log so far."""

    ending: str
    """end, cut or hang"""
    size: int | None = None
    then: Callable[[], None] = lambda: None
    """What happens right before."""


@dataclass
class Pod:
    """A pod and its log."""

    name: str
    log: list[Line]
    created: str = "2026-03-01T12:00:00Z"
    state: str = "running"
    """waiting, running or ended"""
    streams: list[Stream] = field(default_factory=list)
    """Once they are used up, a stream goes on until the container has ended."""
    rest: Stream = field(default_factory=lambda: Stream("end"))
    """How the log is read without following."""
    since: list[str | None] = field(default_factory=list)
    """As it was asked for."""

    def end(self) -> None:
        self.state = "ended"

    deleted: str | None = None
    """When it will be killed at the latest."""

    def object(self) -> Json:
        state: Json = {"terminated": {"exitCode": 0}} if self.state == "ended" else {self.state: {}}
        phase = {"ended": "Succeeded", "waiting": "Pending", "running": "Running"}[self.state]
        return {
            "metadata": {
                "name": self.name,
                "creationTimestamp": self.created,
                "deletionTimestamp": self.deleted,
            },
            "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}]},
        }


class Server(ThreadingHTTPServer):
    """The API server's part that is needed: a Job, its pods, and their logs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pods: dict[str, Pod] = {}
        self.conditions: list[str] = []
        self.has_job = True
        self.down = 0
        self.forbidden = False
        self.closed = threading.Event()

    def add(self, *pods: Pod) -> None:
        self.pods |= {pod.name: pod for pod in pods}

    def complete(self) -> None:
        """All is over."""
        for pod in self.pods.values():
            pod.end()
        self.conditions = ["Failed"]

    def job(self) -> Json:
        conditions = [{"type": kind, "status": "True"} for kind in self.conditions]
        return {"metadata": {"name": RUN, "uid": "u1"}, "spec": {}, "status": {"conditions": conditions}}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        if self.server.down:
            self.server.down -= 1
            self._say(503, {"message": "not now"})
        elif parts[-1] == "log":
            self._log(parts[-2], query)
        elif parts[-1] == "pods":
            assert query["labelSelector"] == "batch.kubernetes.io/controller-uid=u1"
            self._say(200, {"items": [pod.object() for pod in self.server.pods.values()], "metadata": {}})
        elif parts[-2:] == ["jobs", RUN] and self.server.has_job:
            self._say(200, self.server.job())
        else:
            self._say(404, {"message": "not found"})

    def _say(self, status: int, body: Json) -> None:
        said = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def _log(self, name: str, query: dict[str, str]) -> None:
        assert (query["container"], query["timestamps"]) == ("trainer", "true")
        pod = self.server.pods.get(name)
        if self.server.forbidden:
            self._say(403, {"message": 'pods is forbidden: User "ada" cannot get resource "pods/log"'})
        elif pod is None:
            self._say(404, {"message": f'pods "{name}" not found'})
        elif pod.state == "waiting":
            self._say(400, {"message": "container is waiting to start"})
        else:
            self._stream(pod, query)

    def _stream(self, pod: Pod, query: dict[str, str]) -> None:
        is_followed = query["follow"] == "true"
        pod.since.append(query.get("sinceTime"))
        since = as_nanoseconds(query["sinceTime"]) if "sinceTime" in query else 0
        body = "".join(f"{as_time(when)} {text}\n" for when, text in pod.log if when >= since).encode()
        how = pod.streams.pop(0) if is_followed and pod.streams else pod.rest
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(body[: how.size]), 100):
            piece = body[: how.size][start : start + 100]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        how.then()
        while is_followed and how is pod.rest and pod.state != "ended" and not self.server.closed.wait(0.01):
            pass
        if how.ending == "hang":
            self.server.closed.wait()
        if how.ending == "end":
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.closed.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def cluster(server: Server) -> Iterator[Cluster]:
    settings = client.Configuration(host=f"http://127.0.0.1:{server.server_port}")
    settings.retries = False
    caller = client.ApiClient(settings)
    yield Cluster(Api(caller), "ns")
    caller.rest_client.pool_manager.clear()


Follow = Callable[[], list[Told]]


@pytest.fixture
def followed(cluster: Cluster, storage: Storage) -> Follow:
    return lambda: list(follow(cluster, storage, RUN, PACE))


def test_promise_37_pods_are_followed_in_order(server: Server, followed: Follow) -> None:
    late = Pod("a", numbered(4, 5), created="2026-03-01T12:01:00Z", state="waiting")
    early = Pod("b", numbered(1, 3))

    def go_on() -> None:
        early.state, late.state = "ended", "running"

    early.streams, late.streams = [Stream("end", then=go_on)], [Stream("end", then=server.complete)]
    server.add(late, early)
    told = followed()
    assert texts(told) == ["line 1", "line 2", "line 3", "line 4", "line 5"]
    assert [one.source for one in told] == ["b", "b", "b", "a", "a"]


@pytest.mark.parametrize("ending", ["cut", "end", "hang"])
@pytest.mark.parametrize("size", [0, 37, 38, 39, 411])
def test_promise_37_a_stream_that_fails_at_any_byte_loses_and_doubles_nothing(
    server: Server, followed: Follow, ending: str, size: int
) -> None:
    pod = Pod("p", numbered(1, 30))
    pod.streams = [Stream(ending, size), Stream(ending, size + 400), Stream("end", then=server.complete)]
    server.add(pod)
    assert texts(followed()) == [text for _, text in numbered(1, 30)]
    assert len(pod.since) >= 4  # with the last read, once the container had ended


def test_promise_37_only_the_last_seconds_are_read_again(server: Server, followed: Follow) -> None:
    pod = Pod("p", numbered(1, 65), streams=[Stream("cut"), Stream("end", then=server.complete)])
    server.add(pod)
    assert texts(followed()) == [text for _, text in numbered(1, 65)]
    assert pod.since[0] is None
    assert set(pod.since[1:]) == {"2026-03-01T12:00:05Z"}  # line 64 is of 12:00:06, less one second


def test_promise_37_lines_that_a_rotation_took_are_told_as_a_gap(
    server: Server, followed: Follow, storage: Storage
) -> None:
    pod = Pod("p", numbered(1, 10))

    def rotate() -> None:
        pod.log = numbered(15, 20)

    pod.streams = [Stream("end", then=rotate), Stream("end", then=server.complete)]
    server.add(pod)
    told = followed()
    # Line 10 ended its stream: it was kept back because it might have been cut.
    assert texts(told) == [*(f"line {n}" for n in range(1, 10)), "...", *(f"line {n}" for n in range(15, 21))]
    gap = told[9]
    assert isinstance(gap, Gap)
    assert (gap.after, gap.before) == (as_time(START + 9 * STEP), as_time(START + 15 * STEP))
    assert gap.rest == f"{storage.uri}/runs/{RUN}/attempts/"


def test_promise_37_a_rotated_log_that_is_empty_is_a_gap(server: Server, followed: Follow) -> None:
    pod = Pod("p", numbered(1, 3))

    def rotate() -> None:
        pod.log = []
        server.complete()

    pod.streams = [Stream("hang", then=rotate)]
    server.add(pod)
    assert texts(followed()) == ["line 1", "line 2", "line 3", "..."]


def test_promise_37_a_follow_that_a_rotation_stopped_goes_on(server: Server, followed: Follow) -> None:
    """Airflow #23496: the stream hangs for ever, and the container goes on writing."""
    pod = Pod("p", numbered(1, 3))
    pod.streams = [Stream("hang", then=lambda: pod.log.extend(numbered(4, 6))), Stream("end", then=server.complete)]
    server.add(pod)
    assert texts(followed()) == [text for _, text in numbered(1, 6)]


def test_promise_37_the_end_is_seen_while_the_stream_hangs(server: Server, cluster: Cluster, storage: Storage) -> None:
    """Long before the stream counts as silent; what it kept back comes by a last read."""
    pod = Pod("p", numbered(1, 3))

    def end() -> None:
        pod.log += numbered(4, 6)
        server.complete()

    pod.streams = [Stream("hang", 40, then=end)]
    server.add(pod)
    told = [*follow(cluster, storage, RUN, PATIENT)]
    assert texts(told) == [text for _, text in numbered(1, 6)]


def test_promise_37_the_end_is_seen_while_all_hangs(server: Server, cluster: Cluster, storage: Storage) -> None:
    """A node that is lost: its container never ends, and its log cannot be read."""
    hang = Stream("hang", then=lambda: server.conditions.append("Failed"))
    server.add(Pod("p", numbered(1, 3), streams=[hang], rest=Stream("hang", 0)))
    told = [*follow(cluster, storage, RUN, PATIENT)]
    assert texts(told) == ["line 1", "line 2", "line 3", "..."]


def test_promise_37_a_container_that_the_run_has_left_behind_is_told(server: Server, followed: Follow) -> None:
    hang = Stream("hang", 0, then=lambda: server.conditions.append("Failed"))
    server.add(Pod("p", numbered(1, 3), streams=[hang]))
    told = followed()
    assert texts(told) == ["line 1", "line 2", "line 3", "..."]
    assert "has not ended" in told[-1].text


def test_promise_37_a_pod_that_goes_in_the_middle_leaves_a_gap(server: Server, followed: Follow) -> None:
    pod = Pod("p", numbered(1, 3))

    def evict() -> None:
        server.pods.clear()
        server.conditions.append("Failed")

    pod.streams = [Stream("end", then=evict)]
    server.add(pod)
    told = followed()
    assert texts(told) == ["line 1", "line 2", "line 3", "..."]
    assert "not found" in told[-1].text


def test_promise_37_attempts_whose_pods_are_gone_come_from_the_store(
    server: Server, followed: Follow, storage: Storage
) -> None:
    """Each attempt from one place: the second's pod is there, the others' are not."""
    for number, pod in enumerate(("gone", "here", "gone too"), 1):
        claim(storage, number, pod)
        claimed = datetime(2026, 3, 1, 12, number, 30, tzinfo=UTC).timestamp()
        os.utime(Path(storage.uri, KEYS.attempt(number).claim), (claimed, claimed))
        put_chunk(storage, number, 1, f"stored {number}")
    here = [(START, json.dumps({"event": "from the pod"}))]
    server.add(Pod("here", here, state="ended", created="2026-03-01T12:02:00Z"))
    server.conditions = ["Failed"]
    assert events(followed()) == [("attempt 1", "stored 1"), ("here", "from the pod"), ("attempt 3", "stored 3")]


def test_promise_37_a_pod_whose_log_is_not_to_be_had_is_replaced_by_the_store(
    server: Server, followed: Follow, storage: Storage
) -> None:
    claim(storage, 1, "p")
    put_chunk(storage, 1, 1, "stored")
    server.add(Pod("p", [], state="waiting"))
    server.conditions = ["Failed"]
    assert events(followed()) == [("p", "..."), ("attempt 1", "stored")]


def test_promise_37_an_attempt_elsewhere_is_followed_in_the_store(
    server: Server, cluster: Cluster, storage: Storage
) -> None:
    claim(storage, 1, "far away")
    put_chunk(storage, 1, 1, "one")
    following = follow(cluster, storage, RUN, PACE)
    told = [next(following)]
    put_chunk(storage, 1, 2, "two")
    told.append(next(following))
    put_chunk(storage, 1, 3, "three")
    server.conditions = ["Failed"]
    assert events([*told, *following]) == [("attempt 1", event) for event in ("one", "two", "three")]


def test_promise_37_a_log_whose_job_is_gone_comes_from_the_store(
    server: Server, followed: Follow, cluster: Cluster, storage: Storage
) -> None:
    server.has_job = False
    claim(storage, 1, "p")
    put_chunk(storage, 1, 1, "stored")
    storage.put(KEYS.attempt(1).outcome, b'{"schema_version":1,"code":70,"name":"BUG","stage":"train","message":"x"}')
    assert events(followed()) == [("attempt 1", "stored")]
    assert events([*so_far(cluster, storage, RUN)]) == [("attempt 1", "stored")]


def test_promise_37_a_pod_that_waits_is_waited_for(server: Server, cluster: Cluster, storage: Storage) -> None:
    pod = Pod("p", numbered(1, 2), state="waiting", streams=[Stream("end", then=server.complete)])
    server.add(pod)
    told: list[Told] = []
    thread = threading.Thread(target=lambda: told.extend(follow(cluster, storage, RUN, PACE)), daemon=True)
    thread.start()
    thread.join(1)
    assert (thread.is_alive(), told) == (True, [])
    pod.state = "running"
    thread.join()
    assert texts(told) == ["line 1", "line 2"]


def test_promise_37_a_pod_that_is_ending_is_followed_to_its_end(
    server: Server, cluster: Cluster, storage: Storage
) -> None:
    """A run that was cancelled is over, and its pod still saves what there is to save."""
    pod = Pod("p", numbered(1, 2), deleted="2999-01-01T00:00:00Z")
    server.add(pod)
    server.conditions = ["Failed"]
    told: list[Told] = []
    thread = threading.Thread(target=lambda: told.extend(follow(cluster, storage, RUN, PACE)), daemon=True)
    thread.start()
    thread.join(1)
    assert (thread.is_alive(), texts(told)) == (True, ["line 1", "line 2"])
    pod.log.append(numbered(3, 3)[0])
    server.complete()
    thread.join()
    assert texts(told) == ["line 1", "line 2", "line 3"]


def test_promise_37_a_pod_that_came_and_ended_meanwhile_is_told(server: Server, followed: Follow) -> None:
    def go_on() -> None:
        server.add(Pod("second", numbered(3, 4), created="2026-03-01T12:01:00Z"))
        server.complete()

    server.add(Pod("first", numbered(1, 2), streams=[Stream("hang", then=go_on)]))
    assert texts(followed()) == ["line 1", "line 2", "line 3", "line 4"]


def test_promise_37_an_api_server_that_is_away_for_a_while_ends_nothing(server: Server, followed: Follow) -> None:
    pod = Pod("p", numbered(1, 5))

    def fail() -> None:
        server.down = 4

    pod.streams = [Stream("cut", 80, then=fail), Stream("end", then=server.complete)]
    server.add(pod)
    assert texts(followed()) == [text for _, text in numbered(1, 5)]
    assert server.down == 0


def test_more_lines_than_are_kept_waiting_are_told(server: Server, followed: Follow) -> None:
    log = [(START + n, f"line {n}") for n in range(5000)]
    server.add(Pod("p", log, streams=[Stream("end", then=server.complete)]))
    assert texts(followed()) == [text for _, text in log]


def test_without_following_the_log_goes_as_far_as_it_goes(server: Server, cluster: Cluster, storage: Storage) -> None:
    server.add(Pod("p", numbered(1, 3)))
    assert texts([*so_far(cluster, storage, RUN)]) == ["line 1", "line 2", "line 3"]


def test_a_run_that_is_not_there_has_no_log(
    server: Server, followed: Follow, cluster: Cluster, storage: Storage
) -> None:
    server.has_job = False
    with pytest.raises(NoInputError, match=RUN):
        followed()
    with pytest.raises(NoInputError, match=RUN):
        list(so_far(cluster, storage, RUN))
    assert list(stored(storage, RUN)) == []


def test_whoever_may_not_read_logs_is_told(server: Server, followed: Follow) -> None:
    server.add(Pod("p", numbered(1, 3)))
    server.forbidden = True
    with pytest.raises(PermissionDenied, match="pods/log"):
        followed()
