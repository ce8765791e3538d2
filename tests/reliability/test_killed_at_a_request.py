"""The supervisor dies at a request to the store, before the store has it or after: whichever it is, nothing is untrue."""

import logging
import random
from dataclasses import dataclass

from tests.reliability.conftest import Make, Uninterrupted
from tests.reliability.reader import Reader
from tests.reliability.starts import ONE_BEAT, SOAK, Process, dies, side_by_side
from tests.storage.faulty_s3 import Fault, faulty_s3, only

COMMITS = ("/complete.json", "/published.json", "/result.json", "/tiny/runs/", "/latest.json")
CHOSEN = 4
"""Other requests that a short session looks at."""


@dataclass(frozen=True)
class Moment:
    """The n-th request of a run, or the put of a key."""

    number: int | None
    path: str
    forwarded: bool

    def fault(self, dying: Fault) -> Fault:
        return only("PUT", dying, 1, self.path)() if self.number is None else _nth(self.number, dying)


def moments(requests: int) -> list[Moment]:
    """Every request in a soak, and both sides of it; else those that make something visible, and a seeded choice."""
    if SOAK:
        return [Moment(number, "", forwarded) for number in range(1, requests + 1) for forwarded in (False, True)]
    commits = [Moment(None, path, forwarded=number % 2 == 0) for number, path in enumerate(COMMITS)]
    commits.append(Moment(None, "/result.json", forwarded=False))
    others = random.Random(46).sample(range(1, requests + 1), CHOSEN)
    return commits + [Moment(number, "", forwarded=number % 2 == 0) for number in others]


def _nth(number: int, fault: Fault) -> Fault:
    seen = iter(range(1, 1 << 30))
    return lambda request, send: fault(request, send) if next(seen) == number else send(request)


def test_a_run_that_dies_at_any_request_and_is_started_again(
    stand_in: Make, seaweed: str, uninterrupted: Uninterrupted
) -> None:
    count = len(uninterrupted.requests)
    logging.getLogger(__name__).info("a run makes %d requests", count)
    missing = [path for path in COMMITS if not any(path in request.path for request in uninterrupted.requests)]
    assert missing == []

    def look(moment: Moment) -> None:
        pod, dying = stand_in(), Process()
        with faulty_s3(seaweed) as (store, url), Reader(pod.root) as reader:
            store.faults = [moment.fault(dies(dying, forwarded=moment.forwarded))]
            dying.started.append(process := pod.process(AWS_ENDPOINT_URL_S3=url, FINETUNE_HEARTBEAT_SECONDS=ONE_BEAT))
            printed = process.communicate(timeout=300)
            # A checkpoint that gives way to a newer one is not sent: such a run may be over before the last requests.
            assert process.returncode == -9 or (moment.number and process.returncode == 0), (moment, printed)
            assert pod.finish() == uninterrupted.adapter, moment
        assert len(reader.marks("result.json")) == len(reader.marks("latest.json")) == 1, moment

    side_by_side(look, moments(count))
