"""What S3 and the network can do to us: each case has one outcome, and most are not noticed at all."""

import math
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import pytest

from job.contract.errors import (
    ConfigError,
    DataError,
    JobError,
    NoInputError,
    PermissionDenied,
    UnavailableError,
    UsageError,
)
from job.contract.model import sha256_hex
from job.storage import Stat, Storage
from job.storage.canary import probe
from job.storage.opening import open_storage
from job.storage.s3_client import forget_client
from tests.storage.faulty_s3 import (
    Answer,
    BrokenConnection,
    Fault,
    FaultyS3,
    Request,
    Send,
    after,
    cuts_off_after,
    damages_the_answer,
    damages_the_body,
    faulty_s3,
    loses_the_answer,
    never_answers,
    only,
    says,
    stalls_after,
    with_header,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LARGE = (8 << 20) + (1 << 20)  # two parts
Put = Callable[[str, bytes], object]


@pytest.fixture(scope="module")
def between(seaweed: str) -> Iterator[FaultyS3]:
    """The faulty server, which our storage takes for the store."""
    with faulty_s3(seaweed) as (server, url), pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL_S3", url)
        environment.setenv("AWS_MAX_ATTEMPTS", "2")
        environment.setenv("FINETUNE_S3_BUDGET_SECONDS", "2")
        forget_client()
        yield server
    forget_client()


@pytest.fixture
def faulty(between: FaultyS3) -> Iterator[FaultyS3]:
    """The same without a fault yet."""
    between.faults, between.seen, between.unread = [], [], 0
    between.over = threading.Event()
    yield between
    between.over.set()


@pytest.fixture
def put(seaweed: str, bucket: str) -> Put:
    """Another writer, who does not pass through the faulty server."""
    name, _, prefix = bucket.removeprefix("s3://").partition("/")
    s3 = boto3.client("s3", endpoint_url=seaweed)
    return lambda key, body: s3.put_object(Bucket=name, Key=f"{prefix}/{key}", Body=body)


@pytest.fixture
def storage(faulty: FaultyS3, bucket: str) -> Storage:
    return open_storage(bucket)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    file = tmp_path / "large"
    file.write_bytes(random.Random(0).randbytes(LARGE))
    return file


# What is not noticed

ONCE = {
    "the answer to a put is lost": only("PUT", loses_the_answer, times=1),
    "the answer to the end of an upload is lost": only("POST", loses_the_answer, times=1, path="uploadId"),
    "a part is damaged on its way up": only("PUT", damages_the_body, times=1),
    "an answer breaks off": only("GET", cuts_off_after(1000), times=1),
    "the store is slow": only("PUT", says(503, "SlowDown"), times=3),
    "the store has an error": only("GET", says(500, "InternalError"), times=3),
    "another writer is at it": only("PUT", says(409, "ConditionalRequestConflict"), times=1),
    "the token has expired": only("PUT", says(400, "ExpiredToken"), times=1),
    "the token has expired, says a HEAD": only("HEAD", says(400, ""), times=1),
    "the key was rotated": only("GET", says(403, "InvalidAccessKeyId"), times=1),
    "an answer is late": only("HEAD", says(504, "GatewayTimeout"), times=1),
}


@pytest.mark.parametrize("fault", ONCE.values(), ids=ONCE)
@pytest.mark.parametrize("size", [100, LARGE])
def test_what_passes_is_not_noticed(
    faulty: FaultyS3,
    bucket: str,
    fault: Callable[[], Fault],
    size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FINETUNE_S3_BUDGET_SECONDS", "60")
    storage = open_storage(bucket)
    body = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(body)
    faulty.faults = [fault()]
    uploaded = storage.upload(tmp_path / "file", "file")
    storage.download(uploaded.stat, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == body
    assert uploaded.sha256 == sha256_hex(body)
    first = storage.put_if_absent("claim", b"mine")
    assert first is not None
    assert first == storage.head("claim")
    second = storage.put_if_match("claim", b"still mine", first.etag)
    assert second is not None
    assert (storage.get("claim") or (b"",))[0] == b"still mine"


# Whose put it was


def test_our_put_is_recognised_when_its_answer_was_lost(faulty: FaultyS3, storage: Storage) -> None:
    faulty.faults = [only("PUT", loses_the_answer, times=1)()]
    first = storage.put_if_absent("claim", b"mine")
    assert first == storage.head("claim")
    assert first is not None
    assert faulty.count("PUT") == 2
    faulty.faults = [only("PUT", loses_the_answer, times=1)()]
    second = storage.put_if_match("claim", b"mine too", first.etag)
    assert second == storage.head("claim")
    assert faulty.count("PUT") == 4


def test_another_ones_put_is_not_taken_for_ours(faulty: FaultyS3, storage: Storage, put: Put) -> None:
    def overtaken(_request: Request, _send: Send) -> Answer:
        put("claim", b"theirs")
        raise BrokenConnection

    faulty.faults = [only("PUT", overtaken, times=1)()]
    assert storage.put_if_absent("claim", b"mine") is None
    stat = storage.put("claim", b"mine")
    faulty.faults = [only("PUT", overtaken, times=1)()]
    assert storage.put_if_match("claim", b"mine too", stat.etag) is None
    assert (storage.get("claim") or (b"",))[0] == b"theirs"


# What is an end, and which

KMS = "User is not authorized to perform: kms:Decrypt on this resource"
ENDS: dict[str, tuple[Callable[[], Fault], type[JobError], str]] = {
    "archived": (only("GET", says(403, "InvalidObjectState")), NoInputError, "archive"),
    "archived, says a HEAD": (only("HEAD", with_header("x-amz-storage-class", "GLACIER")), NoInputError, "archive"),
    "tiered away": (only("HEAD", with_header("x-amz-archive-status", "ARCHIVE_ACCESS")), NoInputError, "archive"),
    "no key for it": (only("GET", says(403, "AccessDenied", KMS)), PermissionDenied, "kms:Decrypt"),
    "its key is off": (only("GET", says(400, "KMS.DisabledException")), PermissionDenied, "kms:Decrypt"),
    "may not read": (only("GET", says(403, "AccessDenied")), PermissionDenied, "s3:GetObject"),
    "may not look": (only("HEAD", says(403, "")), PermissionDenied, "s3:GetObject"),
    "unknown identity": (only("GET", says(403, "InvalidAccessKeyId")), PermissionDenied, "credentials"),
    "bad signature": (only("GET", says(403, "SignatureDoesNotMatch")), PermissionDenied, "credentials"),
    "expired for good": (only("GET", says(400, "ExpiredToken")), PermissionDenied, "credentials"),
    "no bucket": (only("GET", says(404, "NoSuchBucket")), NoInputError, "bucket"),
    "slow for ever": (only("GET", says(503, "SlowDown")), UnavailableError, "AWS_ENDPOINT_URL_S3"),
    "broken for ever": (only("GET", says(500, "InternalError")), UnavailableError, "AWS_ENDPOINT_URL_S3"),
    "silent for ever": (only("GET", loses_the_answer), UnavailableError, "AWS_ENDPOINT_URL_S3"),
    "cut off for ever": (only("GET", cuts_off_after(10)), UnavailableError, "AWS_ENDPOINT_URL_S3"),
    "wrong region": (only("GET", says(400, "AuthorizationHeaderMalformed")), ConfigError, "AWS_REGION"),
    "wrong clock": (only("GET", says(403, "RequestTimeTooSkewed")), ConfigError, "clock"),
    "cannot do it": (only("GET", says(501, "NotImplemented")), ConfigError, "store"),
}


def read(storage: Storage, stat: Stat, path: Path) -> None:
    storage.head(stat.key)
    storage.download(stat, path)


@pytest.mark.parametrize(("fault", "kind", "advice"), ENDS.values(), ids=ENDS)
def test_each_failure_has_its_kind_and_says_what_to_do(
    faulty: FaultyS3,
    storage: Storage,
    fault: Callable[[], Fault],
    kind: type[JobError],
    advice: str,
    tmp_path: Path,
) -> None:
    stat = storage.put("key", b"x" * 100)
    faulty.faults = [fault()]
    with pytest.raises(kind, match=f"^{re.escape(storage.uri)}/key") as caught:
        read(storage, stat, tmp_path / "got")
    assert type(caught.value).code == kind.code
    assert advice.lower() in caught.value.resolution.lower()
    assert list(tmp_path.iterdir()) == []


def test_a_restored_object_is_no_longer_archived(faulty: FaultyS3, storage: Storage) -> None:
    stat = storage.put("key", b"x")
    faulty.faults = [
        only("HEAD", with_header("x-amz-storage-class", "GLACIER"))(),
        only("HEAD", with_header("x-amz-restore", 'ongoing-request="false"'))(),
    ]
    assert storage.head("key") == stat


# A download is whole and unchanged, or an error


@pytest.mark.parametrize("size", [100, LARGE])
def test_an_object_replaced_between_head_and_get_is_no_mixture(
    faulty: FaultyS3, storage: Storage, put: Put, size: int, tmp_path: Path
) -> None:
    put("key", b"1" * size)
    stat = storage.head("key")
    assert stat is not None
    faulty.faults = [only("GET", after(lambda: put("key", b"2" * size)), times=1)()]
    with pytest.raises(DataError, match="changed while it was read"):
        storage.download(stat, tmp_path / "got")
    assert list(tmp_path.iterdir()) == []


def test_a_bit_that_flips_on_the_way_down_is_found(
    faulty: FaultyS3, storage: Storage, large: Path, tmp_path: Path
) -> None:
    stat = storage.upload(large, "key").stat
    faulty.faults = [only("GET", damages_the_answer, times=1)()]
    with pytest.raises(DataError, match="arrived damaged: its CRC64NVME"):
        storage.download(stat, tmp_path / "to/got")
    assert list((tmp_path / "to").iterdir()) == []


def test_in_a_small_object_it_is_found_and_fetched_again(faulty: FaultyS3, storage: Storage, tmp_path: Path) -> None:
    stat = storage.put("key", b"x" * 100)
    faulty.faults = [only("GET", damages_the_answer, times=1)()]
    storage.download(stat, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == b"x" * 100
    assert faulty.count("GET") == 2


def test_a_bucket_that_keeps_versions_gives_the_one_that_was_named(
    s3: "S3Client", seaweed: str, tmp_path: Path
) -> None:
    s3.create_bucket(Bucket="versions")
    s3.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    storage = open_storage("s3://versions")
    for size in (100, LARGE):
        (tmp_path / "old").write_bytes(b"1" * size)
        (tmp_path / "new").write_bytes(b"2" * size)
        stat = storage.upload(tmp_path / "old", "key").stat
        assert stat.version_id
        storage.upload(tmp_path / "new", "key")
        storage.download(stat, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == b"1" * size


# A connection that hangs

HANGS = {
    "a put is never answered": only("PUT", never_answers, times=1),
    "the end of an upload is never answered": only("POST", never_answers, times=1, path="uploadId"),
    "a look is never answered": only("HEAD", never_answers, times=1),
    "a read is never answered": only("GET", never_answers, times=1),
    "a read stops in the middle": only("GET", stalls_after(50), times=1),
}


@pytest.fixture
def impatient(opened: Callable[..., Storage], bucket: str) -> Storage:
    """The store, whose connections may be silent for a second, and which is asked again for a minute."""
    return opened({"FINETUNE_S3_READ_SECONDS": "1", "FINETUNE_S3_BUDGET_SECONDS": "60"}, bucket)


@pytest.fixture
def hurried(opened: Callable[..., Storage], bucket: str) -> Storage:
    """The same, which is given up at once."""
    return opened({"FINETUNE_S3_READ_SECONDS": "1", "AWS_MAX_ATTEMPTS": "1"}, bucket)


@pytest.mark.timeout(50)  # less than what a connection may be silent for when nothing is set
@pytest.mark.parametrize("fault", HANGS.values(), ids=HANGS)
@pytest.mark.parametrize("size", [100, LARGE])
def test_a_connection_that_hangs_is_left_for_another(
    faulty: FaultyS3, impatient: Storage, fault: Callable[[], Fault], size: int, tmp_path: Path
) -> None:
    body = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(body)
    faulty.faults = [fault()]
    uploaded = impatient.upload(tmp_path / "file", "file")
    impatient.download(uploaded.stat, tmp_path / "got")
    assert impatient.head("file") == uploaded.stat
    assert (tmp_path / "got").read_bytes() == body


@pytest.mark.parametrize("fault", [never_answers, stalls_after(50)], ids=["never answers", "stops in the middle"])
@pytest.mark.parametrize("size", [100, LARGE])
def test_a_store_whose_every_read_hangs_is_unavailable_and_leaves_no_file(
    faulty: FaultyS3, hurried: Storage, fault: Fault, size: int, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    stat = hurried.upload(tmp_path / "file", "key").stat
    faulty.faults = [only("GET", fault)()]
    with pytest.raises(UnavailableError):
        hurried.download(stat, tmp_path / "to" / "got")
    assert list((tmp_path / "to").iterdir()) == []


def test_an_upload_whose_body_the_store_stops_taking_goes_over_another_connection(
    faulty: FaultyS3, impatient: Storage, large: Path, tmp_path: Path
) -> None:
    faulty.unread = 1
    stat = impatient.upload(large, "key").stat
    assert faulty.unread == 0
    impatient.download(stat, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == large.read_bytes()


@pytest.mark.parametrize("unread", [0, math.inf], ids=["never answers", "stops in the middle"])
def test_a_store_whose_every_upload_hangs_is_unavailable_and_has_no_object(
    faulty: FaultyS3, hurried: Storage, unread: float, large: Path, s3: "S3Client"
) -> None:
    faulty.faults, faulty.unread = [only("PUT", never_answers)()], unread
    with pytest.raises(UnavailableError):
        hurried.upload(large, "key")
    assert hurried.head("key") is None
    name, _, prefix = hurried.uri.removeprefix("s3://").partition("/")
    assert s3.list_multipart_uploads(Bucket=name, Prefix=prefix).get("Uploads", []) == []


@pytest.mark.parametrize("text", ["0", "-1", "nan", "soon"])
def test_a_silence_that_is_no_time_is_bad_usage(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FINETUNE_S3_READ_SECONDS", text)
    with pytest.raises(UsageError, match="FINETUNE_S3_READ_SECONDS"):
        open_storage("s3://tests/x")


# An upload is confirmed, or an error that leaves nothing


def test_an_upload_that_fails_is_ended(faulty: FaultyS3, storage: Storage, large: Path, s3: "S3Client") -> None:
    faulty.faults = [only("PUT", says(403, "AccessDenied"), path="partNumber=2")()]
    with pytest.raises(PermissionDenied):
        storage.upload(large, "key")
    name, _, prefix = storage.uri.removeprefix("s3://").partition("/")
    assert s3.list_multipart_uploads(Bucket=name, Prefix=prefix).get("Uploads", []) == []
    assert storage.head("key") is None


def confirms_nothing(request: Request, send: Send) -> Answer:
    answer = with_header("x-amz-checksum-crc64nvme", None)(request, send)
    return with_header("x-amz-checksum-crc32", None)(request, lambda _: answer)


def test_a_store_that_confirms_no_checksum_must_be_said_to_be_one(
    faulty: FaultyS3, storage: Storage, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.faults = [confirms_nothing]
    with pytest.raises(ConfigError) as caught:
        probe(storage, "canary/1")
    assert "FINETUNE_S3_CHECKSUM" in caught.value.resolution
    monkeypatch.setenv("FINETUNE_S3_CHECKSUM", "none")
    plain = open_storage(storage.uri)
    probe(plain, "canary/2")
    faulty.seen.clear()
    assert plain.upload(large, "key").stat.size == LARGE
    assert not [name for request in faulty.seen for name in request.headers if "checksum-crc" in name.lower()]


def test_a_store_that_has_only_crc32_gets_it(storage: Storage, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_S3_CHECKSUM", "crc32")
    older = open_storage(storage.uri)
    small = older.put("small", b"x").checksum
    parts = older.upload(large, "large").stat
    assert small is not None
    assert small.startswith("CRC32:")
    assert parts.checksum is not None
    assert parts.checksum.startswith("CRC32:")
    assert parts.checksum.endswith("-2")
    older.download(parts, large.with_name("got"))
    assert large.with_name("got").read_bytes() == large.read_bytes()


def test_a_checksum_nobody_knows_is_bad_usage(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_S3_CHECKSUM", "md5")
    with pytest.raises(UsageError, match="md5"):
        open_storage(storage.uri)


# The canary


def honours_no_condition(request: Request, send: Send) -> Answer:
    answer = send(request)
    if answer.status != 412:
        return answer
    echoed = {name.lower(): value for name, value in request.headers.items() if "checksum-crc" in name.lower()}
    return Answer(200, {"etag": '"1"', "date": answer.headers["date"]} | echoed, b"")


CANARIES: dict[str, tuple[Fault, type[JobError], str]] = {
    "conditions ignored": (honours_no_condition, ConfigError, "If-None-Match"),
    "conditions refused": (only("PUT", says(501, "NotImplemented"))(), ConfigError, "NotImplemented"),
    "may not write": (only("PUT", says(403, "AccessDenied"))(), PermissionDenied, "AccessDenied"),
    "may not list": (only("GET", says(403, "AccessDenied"), path="list-type=2")(), PermissionDenied, "AccessDenied"),
    "may not look": (only("HEAD", says(403, ""))(), PermissionDenied, "403"),
    "does not answer": (loses_the_answer, UnavailableError, "canary/1"),
}


@pytest.mark.parametrize(("fault", "kind", "text"), CANARIES.values(), ids=CANARIES)
def test_the_canary_says_what_the_store_will_not_do(
    faulty: FaultyS3, storage: Storage, fault: Fault, kind: type[JobError], text: str
) -> None:
    faulty.faults = [fault]
    with pytest.raises(kind, match=re.escape(text)):
        probe(storage, "canary/1")


# Where nothing answers


@pytest.fixture
def opened(faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Storage]]:
    """Opens the store in another environment."""

    def opened(environment: dict[str, str], uri: str = "s3://tests/x") -> Storage:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        forget_client()
        return open_storage(uri)

    yield opened
    forget_client()


WRONG: dict[str, tuple[dict[str, str], type[JobError]]] = {
    "nobody listens": ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, UnavailableError),
    "not a URL": ({"AWS_ENDPOINT_URL_S3": "nonsense"}, ConfigError),
    "no such profile": ({"AWS_PROFILE": "nobody"}, ConfigError),
    "another's secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, PermissionDenied),
    "an unknown key": ({"AWS_ACCESS_KEY_ID": "nobody"}, PermissionDenied),
    "half a credential": ({"AWS_SECRET_ACCESS_KEY": ""}, PermissionDenied),
    "no credential": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, PermissionDenied),
}


@pytest.mark.parametrize(("environment", "kind"), WRONG.values(), ids=WRONG)
def test_a_wrong_environment_is_said(
    opened: Callable[[dict[str, str]], Storage], environment: dict[str, str], kind: type[JobError]
) -> None:
    with pytest.raises(kind):
        opened(environment).put("key", b"x")


def test_plain_http_where_tls_is_asked_for_is_a_wrong_setting(
    opened: Callable[[dict[str, str]], Storage], seaweed: str
) -> None:
    with pytest.raises(ConfigError, match="SSL"):
        opened({"AWS_ENDPOINT_URL_S3": seaweed.replace("http:", "https:")}).head("key")


def test_a_bucket_that_is_not_there_is_no_input(storage: Storage, tmp_path: Path) -> None:
    missing = open_storage("s3://no-such-bucket/x")
    (tmp_path / "file").write_bytes(b"x")
    for use in (
        lambda: missing.put("key", b"x"),
        lambda: list(missing.list("")),
        lambda: missing.upload(tmp_path / "file", "key"),
        lambda: missing.get("key"),
    ):
        with pytest.raises(NoInputError, match="s3://no-such-bucket/x"):
            use()
