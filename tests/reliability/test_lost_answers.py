"""What a run has done to the store without hearing of it."""

from typing import TYPE_CHECKING

from job.contract.keys import RunKeys
from job.storage.opening import open_storage
from tests.cluster.node.attempts import adapter, attempts
from tests.reliability.conftest import Make, Uninterrupted
from tests.reliability.reader import Reader
from tests.reliability.starts import Process, dies
from tests.storage.faulty_s3 import Answer, Request, Send, faulty_s3, loses_the_answer, only

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONDITIONAL = ("/spec.json", "/claim.json", "/result.json", "/tiny/runs/", "/latest.json")


def test_a_put_whose_answer_gets_lost_is_known_as_our_own(
    stand_in: Make, seaweed: str, uninterrupted: Uninterrupted
) -> None:
    swapped: list[str] = []

    def loses_a_swap(request: Request, send: Send) -> Answer:
        """Of the lease: its compare-and-swap, not its first put."""
        if request.method == "PUT" and "/lease.json" in request.path and "If-Match" in request.headers and not swapped:
            swapped.append(request.path)
            return loses_the_answer(request, send)
        return send(request)

    pod = stand_in(seconds=0.3)
    with faulty_s3(seaweed) as (store, url), Reader(pod.root) as reader:
        store.faults = [loses_a_swap, *(only("PUT", loses_the_answer, 1, path)() for path in CONDITIONAL)]
        ended = pod.start(AWS_ENDPOINT_URL_S3=url)
        for path in CONDITIONAL:
            assert len([r for r in store.seen if r.method == "PUT" and path in r.path]) >= 2, f"{path} was sent again"
    assert ended.code == 0, ended.printed
    assert swapped
    assert ended.events("a heartbeat was missed") == []
    assert [attempt.code for attempt in attempts(reader.storage, pod.run)] == [0]
    assert len(reader.marks("result.json")) == len(reader.marks("latest.json")) == 1
    assert adapter(reader.storage, pod.run) == uninterrupted.adapter


def test_an_upload_that_a_kill_left_is_ended_and_that_of_another_run_is_not(
    stand_in: Make, large_base: str, seaweed: str, s3: "S3Client"
) -> None:
    pod, dying = stand_in(base_model=large_base, training={"save_steps": None}), Process()

    def unfinished() -> list[str]:
        prefix = pod.root.removeprefix("s3://tests/")
        return [upload["Key"] for upload in s3.list_multipart_uploads(Bucket="tests", Prefix=prefix).get("Uploads", [])]

    with faulty_s3(seaweed) as (store, url), Reader(pod.root):
        store.faults = [only("PUT", dies(dying, forwarded=True), 1, "/lora/merges.txt?")()]
        dying.started.append(process := pod.process(AWS_ENDPOINT_URL_S3=url))
        process.communicate(timeout=300)
        prefix = f"{pod.root.removeprefix('s3://tests/')}/"
        [ours] = unfinished()
        assert ours == f"{prefix}{RunKeys(pod.run).attempt(1).artifacts('lora')}merges.txt"
        others = f"{prefix}{RunKeys(f'{pod.run}-2').attempt(1).artifacts('lora')}merges.txt"
        s3.create_multipart_upload(Bucket="tests", Key=others)
        ended = pod.start()
        assert ended.code == 0, ended.printed
    assert [line["count"] for line in ended.events("unfinished uploads of earlier attempts were ended")] == [1]
    assert unfinished() == [others]
    assert open_storage(pod.root).head(f"{RunKeys(pod.run).attempt(2).artifacts('lora')}merges.txt")
