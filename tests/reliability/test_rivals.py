"""Several supervisors of one run: at once, one after the other as a zombie, and of Jobs that know nothing of each other."""

import signal
import threading
import time
from collections.abc import Mapping

import pytest

from job.contract.documents import STALE_SECONDS, Lease
from job.contract.exits import Exit
from job.contract.keys import RunKeys
from job.storage.opening import open_storage
from tests.cluster.node.attempts import adapter, attempts
from tests.job.conftest import wait_for_training
from tests.reliability.conftest import Make, Uninterrupted
from tests.reliability.reader import Reader
from tests.reliability.starts import SOAK, Process, kill, send
from tests.storage.faulty_s3 import Answer, Request, Send, faulty_s3, only

RACERS = 20 if SOAK else 6
PATIENCE = "20"
"""Seconds: on a machine so busy a heart beats late."""


def test_racers(stand_in: Make, uninterrupted: Uninterrupted) -> None:
    first = stand_in()
    pods = [  # half of them are pods of one Job, the others are Jobs of their own
        first.beside(
            f"pod-{number}", FINETUNE_JOB_UID="one" if number % 2 else f"job-{number}", FINETUNE_STALE_SECONDS=PATIENCE
        )
        for number in range(RACERS)
    ]
    with Reader(first.root) as reader:
        processes = [pod.process() for pod in pods]
        endings = [(process.communicate(timeout=600), process.returncode) for process in processes]
    codes = [code for _, code in endings]
    assert set(codes) <= {Exit.OK, Exit.TAKEN, Exit.FENCED}, endings
    assert Exit.OK in codes
    assert not [printed for printed, _ in endings if "Traceback" in "".join(printed)]
    assert len(reader.marks("result.json")) == len(reader.marks("latest.json")) == 1
    assert adapter(reader.storage, first.run) == uninterrupted.adapter
    assert [pod.left() for pod in pods] == [[] for _ in pods]


def seen(root: str) -> Mapping[str, str]:
    """What a reader can see that is not the first attempt's own; of the lease, whose it is."""
    storage = open_storage(root)
    tags = {stat.key: stat.etag for stat in storage.list("") if "/attempts/1/" not in stat.key}
    [lease] = [key for key in tags if key.endswith("/lease.json")]
    found = storage.get(lease)
    assert found
    return {**tags, lease: str(Lease.model_validate_json(found[0]).attempt)}


@pytest.mark.parametrize("path", ["/lora/published.json", "/lora/merges.txt?", "/result.json", "/latest.json"])
def test_a_zombie(stand_in: Make, large_base: str, seaweed: str, uninterrupted: Uninterrupted, path: str) -> None:
    """It is stopped while it sends a request, and goes on when another attempt has published."""
    first = stand_in(base_model=large_base, training={"save_steps": None}) if "merges" in path else stand_in()
    pod, other = (first.beside(name, FINETUNE_JOB_UID="one") for name in ("first", "second"))
    zombie, is_stopped, may_go_on = Process(), threading.Event(), threading.Event()

    def stops(request: Request, send: Send) -> Answer:
        stopped.extend(zombie.tree())
        is_stopped.set()
        may_go_on.wait(300)
        return send(request)

    stopped: list[int] = []
    with faulty_s3(seaweed) as (store, url), Reader(pod.root) as reader:
        store.faults = [only("PUT", stops, 1, path)()]
        zombie.started.append(process := pod.process(AWS_ENDPOINT_URL_S3=url))
        try:
            assert is_stopped.wait(300)
            assert other.start().code == 0
            before = seen(pod.root)
        finally:
            send(reversed(stopped), signal.SIGCONT)
            may_go_on.set()
        printed = process.communicate(timeout=300)
        assert process.returncode in (Exit.OK, Exit.FENCED), printed
        assert "Traceback" not in "".join(printed)
        assert seen(pod.root) == before
    assert len(reader.marks("result.json")) == 1
    assert pod.left() == []
    if "merges" not in path:
        assert adapter(reader.storage, pod.run) == uninterrupted.adapter


def test_a_job_elsewhere_leaves_a_run_that_is_alive_alone(stand_in: Make) -> None:
    run = stand_in(seconds=4)  # so it still trains when the other one, on a busy machine, has come to look
    north = {"FINETUNE_SITE": "north", "FINETUNE_NAMESPACE": "team-a", "FINETUNE_POD": "tiny-x7k2p"}
    here = run.beside("here", FINETUNE_JOB_UID="u1", **north)
    there = run.beside("there", FINETUNE_JOB_UID="u2", FINETUNE_SITE="south", FINETUNE_STALE_SECONDS=PATIENCE)
    with Reader(here.root):
        holder = here.process()
        wait_for_training(here, 1)
        refused = there.start()
        assert refused.code == Exit.TAKEN, refused.printed
        for who in ("site north", "namespace team-a", "pod tiny-x7k2p"):
            assert who in refused.outcome.message
        assert here.end(holder).code == 0
    assert [attempt.code for attempt in attempts(open_storage(here.root), here.run)] == [0]
    done = there.start()
    assert (done.code, done.events("attempt")) == (0, [])
    assert open_storage(here.root).head(RunKeys(here.run).attempt(2).claim) is None


@pytest.mark.skipif(not SOAK, reason="it waits for minutes")
def test_with_the_intervals_that_ship(stand_in: Make, uninterrupted: Uninterrupted) -> None:
    """Nothing is scaled: a heartbeat every 30 s, and another Job's pod that waits until the last one is 90 s old."""
    run = stand_in(seconds=15)
    shipped = {"FINETUNE_HEARTBEAT_SECONDS": "30", "FINETUNE_STALE_SECONDS": str(STALE_SECONDS)}
    first, second = (run.beside(name, FINETUNE_JOB_UID=name, **shipped) for name in ("first", "second"))
    with Reader(first.root) as reader:
        holder = first.process()
        wait_for_training(first, 1)
        kill(holder)
        killed = time.monotonic()
        holder.communicate()
        ended = second.start()
        claimed = time.monotonic() - killed
    assert ended.code == 0, ended.printed
    assert claimed > STALE_SECONDS - 30, "the last heartbeat was at most so old"
    assert [attempt.code for attempt in attempts(reader.storage, run.run)] == [None, 0]
    assert adapter(reader.storage, run.run) == uninterrupted.adapter
    assert len(reader.marks("result.json")) == 1
