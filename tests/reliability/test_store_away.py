"""The store goes away as a run ends, or hangs while a run is told to stop."""

import signal
import threading

import pytest

from job.contract.exits import Exit
from tests.cluster.node.attempts import adapter
from tests.reliability.conftest import Make, Uninterrupted
from tests.reliability.reader import Reader
from tests.storage.faulty_s3 import Answer, Request, Send, faulty_s3, goes_away, never_answers, only


@pytest.mark.parametrize("path", ["/gguf/", "/result.json"])
def test_the_store_is_away_at_the_end(stand_in: Make, seaweed: str, uninterrupted: Uninterrupted, path: str) -> None:
    pod = stand_in()
    with Reader(pod.root) as reader:
        with faulty_s3(seaweed) as (store, url):
            store.faults = [goes_away("PUT", path)]
            ended = pod.start(AWS_ENDPOINT_URL_S3=url, FINETUNE_S3_BUDGET_SECONDS="2", AWS_MAX_ATTEMPTS="1")
        reader.settle()
        assert ended.code == Exit.S3_UNAVAILABLE, ended.printed
        assert "Traceback" not in ended.printed
        assert pod.left() == []
        assert reader.marks("result.json") == reader.marks("latest.json") == []
        [published] = reader.marks("published.json")

        again = pod.start()
        assert again.code == 0, again.printed
    assert len(again.events("training is done")) == 1
    assert again.events("step") == []
    assert len(reader.marks("result.json")) == len(reader.marks("latest.json")) == 1
    assert reader.marks("published.json") == [published]
    assert adapter(reader.storage, pod.run) == uninterrupted.adapter


@pytest.mark.parametrize(
    ("path", "mark", "seconds"),
    [
        ("/optimizer.pt", "complete.json", 0.5),  # of a checkpoint, while the run still trains
        ("/lora/adapter_model.safetensors", "published.json", 0.1),
    ],
)
def test_an_upload_hangs_while_the_run_is_told_to_stop(
    stand_in: Make, seaweed: str, uninterrupted: Uninterrupted, path: str, mark: str, seconds: float
) -> None:
    """One file of several. Its answer would be waited for a minute, then asked for again; the grace period ends that."""
    hangs = threading.Event()

    def hang(request: Request, send: Send) -> Answer:
        hangs.set()
        return never_answers(request, send)

    pod = stand_in(seconds=seconds)
    with Reader(pod.root) as reader:
        with faulty_s3(seaweed) as (store, url):
            store.faults = [only("PUT", hang, path=path)()]
            process = pod.process(AWS_ENDPOINT_URL_S3=url, FINETUNE_GRACE_SECONDS="5")
            assert hangs.wait(300)
            process.send_signal(signal.SIGTERM)
            ended = pod.end(process)
            assert pod.left() == []
        reader.settle()
        assert ended.code == 128 + signal.SIGTERM, ended.printed
        # Training that has stopped meanwhile waits as long for its checkpoint, and may be the one that tells.
        told = ("not everything could be saved within 5 s", "its checkpoint was not kept")
        assert ended.outcome.message.endswith(told)
        assert reader.marks(mark) == reader.marks("result.json") == reader.marks("latest.json") == []

        assert pod.finish() == uninterrupted.adapter
    assert len(reader.marks("result.json")) == len(reader.marks("latest.json")) == 1
