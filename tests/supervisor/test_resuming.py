"""What an attempt goes on from, on a real directory with what killed, foreign and tampering writers leave there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import LogCapture

from job.attempt import Attempt
from job.contract.documents import Checkpoint, Fingerprint, Published, Spec
from job.contract.model import canonical_bytes
from job.logs import LogBuffer
from job.publishing import publish_adapter, upload_verified
from job.resuming import end_uploads, newest_checkpoint, published_adapter
from job.run import Run
from job.stages import Stages
from job.storage import no_progress
from job.storage.opening import open_storage
from job.storage.s3_client import forget_client
from tests.attempts import never_overtaken
from tests.results import SUMMARY
from tests.storage.faulty_s3 import faulty_s3, only, says
from tests.supervisor.checkpoints import NAMES, fingerprint, saved

Damage = Callable[[Path], object]
WHOLE = (*NAMES, "measured.json")


def attempt(run: Run, number: int) -> Attempt:
    return Attempt(run, number, Stages(), LogBuffer(), 30, never_overtaken)


@pytest.fixture
def two(run: Run, tmp_path: Path) -> Run:
    """Attempt 1 has left a checkpoint of step 10, attempt 2 one of step 20."""
    put_checkpoint(run, tmp_path, 1, 10)
    put_checkpoint(run, tmp_path, 2, 20)
    return run


def put_checkpoint(
    run: Run,
    tmp_path: Path,
    number: int,
    step: int,
    theirs: Fingerprint | None = None,
    random_states: tuple[str, ...] = ("rng_state.pth",),
) -> None:
    directory = Path(saved(tmp_path / f"of-{number}", step).directory)
    (directory / "rng_state.pth").unlink()
    for name in ("measured.json", *random_states):
        (directory / name).write_text(f"{name} of step {step}")
    keys = run.keys.attempt(number)
    files = upload_verified(directory, run.storage, keys.checkpoint(step), no_progress)
    complete = Checkpoint(step=step, fingerprint=theirs or fingerprint(run), files=files)
    run.storage.put(keys.complete(step), canonical_bytes(complete))


def chosen(run: Run, tmp_path: Path) -> str | None:
    """Of which step the third attempt's checkpoint is, by its bytes."""
    into = newest_checkpoint(attempt(run, 3), fingerprint(run), tmp_path / "into")
    if into is None:
        return None
    assert sorted(path.name for path in into.iterdir()) == sorted(WHOLE)
    return step_of(into)


def step_of(checkpoint: Path) -> str:
    return (checkpoint / "optimizer.pt").read_text().removeprefix("optimizer.pt of ")


def test_the_newest_of_any_attempt_is_gone_on_from(two: Run, tmp_path: Path, logged: LogCapture) -> None:
    assert chosen(two, tmp_path) == "step 20"
    assert logged.entries == [{"event": "resumed", "log_level": "info", "step": 20, "from_attempt": 2}]


def test_its_own_and_later_attempts_are_not_looked_at(two: Run, tmp_path: Path) -> None:
    put_checkpoint(two, tmp_path, 3, 30)
    assert chosen(two, tmp_path) == "step 20"


def test_one_without_its_mark_does_not_exist(two: Run, tmp_path: Path) -> None:
    (tmp_path / "runs" / two.keys.attempt(2).complete(20)).unlink()
    assert chosen(two, tmp_path) == "step 10"


def refused(logged: LogCapture) -> str:
    [why] = [entry["why"] for entry in logged.entries if entry["log_level"] == "warning"]
    return str(why)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda path: path.unlink(), id="missing"),
        pytest.param(lambda path: path.write_bytes(b"short"), id="another size"),
        pytest.param(lambda path: path.write_bytes(bytes(path.stat().st_size)), id="the same size"),
    ],
)
@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_one_is_passed_over(two: Run, tmp_path: Path, logged: LogCapture, name: str, damage: Damage) -> None:
    damage(tmp_path / "runs" / f"{two.keys.attempt(2).checkpoint(20)}{name}")
    assert chosen(two, tmp_path) == "step 10"
    assert f"{name} is not what was put there" in refused(logged)


FOREIGN = {
    "another spec": ({"spec_sha256": "0" * 64}, f"spec_sha256 was '{'0' * 64}' and is"),
    "another version": ({"versions": {"torch": "2.5.1"}}, "versions.torch was '2.5.1' and is '2.6.0'"),
    "a library more": ({"versions": {"torch": "2.6.0", "trl": "1"}}, "versions.trl was '1' and is None"),
    "a library less": ({"versions": {}}, "versions.torch was None and is '2.6.0'"),
    "another device": ({"device": "gpu"}, "device was 'gpu' and is 'cpu'"),
    "more processes": ({"world_size": 2}, "world_size was 2 and is 1"),
}


@pytest.mark.parametrize(("theirs", "told"), FOREIGN.values(), ids=FOREIGN)
def test_one_of_another_fingerprint_is_passed_over_and_it_is_told_why(
    run: Run, tmp_path: Path, logged: LogCapture, theirs: dict[str, object], told: str
) -> None:
    put_checkpoint(run, tmp_path, 1, 10, fingerprint(run).model_copy(update=theirs))
    assert chosen(run, tmp_path) is None
    assert refused(logged).startswith(f"its fingerprint differs: {told}")
    assert logged.entries[-1]["event"] == "starts from step 0"


def rewrite(run: Run, change: Callable[[Checkpoint], Checkpoint]) -> None:
    """A tamperer who writes the mark anew."""
    key = run.keys.attempt(2).complete(20)
    found = run.storage.get(key)
    assert found
    run.storage.put(key, canonical_bytes(change(Checkpoint.model_validate_json(found[0]))))


def lacking(mark: Checkpoint, name: str) -> Checkpoint:
    return mark.model_copy(update={"files": tuple(file for file in mark.files if not file.key.endswith(f"/{name}"))})


@pytest.mark.parametrize("name", WHOLE)
def test_a_mark_that_lacks_a_file_is_refused(two: Run, tmp_path: Path, logged: LogCapture, name: str) -> None:
    rewrite(two, lambda mark: lacking(mark, name))
    assert chosen(two, tmp_path) == "step 10"
    assert refused(logged) == f"it lacks {name}"


@pytest.mark.parametrize(
    ("random_states", "step", "why"),
    [
        (("rng_state_0.pth", "rng_state_1.pth"), "step 20", []),
        (("rng_state_0.pth",), "step 10", ["it lacks rng_state_1.pth"]),
        (("rng_state_1.pth",), "step 10", ["it lacks rng_state_0.pth"]),
        (("rng_state.pth",), "step 10", ["it lacks rng_state_0.pth, rng_state_1.pth"]),
    ],
    ids=["whole", "the first alone", "the second alone", "of one process"],
)
def test_each_process_needs_its_random_state(
    run: Run, tmp_path: Path, logged: LogCapture, random_states: tuple[str, ...], step: str, why: list[str]
) -> None:
    of_two = fingerprint(run).model_copy(update={"world_size": 2})
    put_checkpoint(run, tmp_path, 1, 10, of_two, ("rng_state_0.pth", "rng_state_1.pth"))
    put_checkpoint(run, tmp_path, 2, 20, of_two, random_states)
    into = newest_checkpoint(attempt(run, 3), of_two, tmp_path / "into")
    assert into
    assert step_of(into) == step
    assert [entry["why"] for entry in logged.entries if entry["log_level"] == "warning"] == why


@pytest.mark.parametrize("name", ["adapter_model.bin", "training_args.bin", "custom.pkl", "../optimizer.json"])
def test_what_no_checkpoint_of_ours_holds_is_never_fetched(
    two: Run, tmp_path: Path, logged: LogCapture, name: str
) -> None:
    prefix = two.keys.attempt(2).checkpoint(20)
    rewrite(
        two,
        lambda mark: mark.model_copy(
            update={"files": (*mark.files, mark.files[0].model_copy(update={"key": prefix + name}))}
        ),
    )
    assert chosen(two, tmp_path) == "step 10"
    assert name in refused(logged)


def test_a_mark_that_nobody_can_read_is_passed_over(two: Run, tmp_path: Path, logged: LogCapture) -> None:
    two.storage.put(two.keys.attempt(2).complete(20), b'{"schema_version": 2}')
    assert chosen(two, tmp_path) == "step 10"
    assert "not a Checkpoint that this version reads" in refused(logged)


def test_the_first_attempt_begins_at_step_0_without_a_word(run: Run, tmp_path: Path, logged: LogCapture) -> None:
    assert newest_checkpoint(attempt(run, 1), fingerprint(run), tmp_path / "into") is None
    assert not logged.entries


def test_uploads_that_earlier_attempts_were_killed_in_are_ended(run: Run, tmp_path: Path, logged: LogCapture) -> None:
    left = {
        number: tmp_path / "runs" / run.keys.attempt(number).prefix / ".0123456789abcdef.part" for number in (1, 2, 3)
    }
    for path in left.values():
        path.parent.mkdir(parents=True)
        path.touch()
    end_uploads(attempt(run, 3))
    assert [number for number, path in left.items() if path.exists()] == [3], "its own, or a newer one's"
    assert [entry.get("count") for entry in logged.entries] == [2]


def test_a_store_that_refuses_to_tell_of_uploads_stops_no_attempt(
    spec: Spec, seaweed: str, bucket: str, logged: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_s3(seaweed) as (server, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        forget_client()
        server.faults = [only("GET", says(403, "AccessDenied"), path="uploads")()]
        end_uploads(attempt(Run(open_storage(bucket), spec, "bot-0123456789"), 2))
    forget_client()
    assert "AccessDenied" in refused(logged)


@pytest.fixture
def published(run: Run, tmp_path: Path) -> Published:
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_model.safetensors").write_bytes(b"weights")
    return publish_adapter(attempt(run, 1), lora, SUMMARY, {"torch": "2.6.0"})


def test_a_published_adapter_is_kept_with_what_training_measured(
    run: Run, published: Published, tmp_path: Path
) -> None:
    assert published_adapter(attempt(run, 3), tmp_path / "adapter") == published
    assert (published.train, published.versions) == (SUMMARY, {"torch": "2.6.0"})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == b"weights"


def test_a_damaged_adapter_is_trained_anew(run: Run, published: Published, tmp_path: Path, logged: LogCapture) -> None:
    (tmp_path / "runs" / published.files[0].key).write_bytes(b"WEIGHTS")
    assert published_adapter(attempt(run, 2), tmp_path / "adapter") is None
    assert "SHA-256 differs" in refused(logged)


def test_an_adapter_of_another_spec_is_not_kept(run: Run, published: Published, tmp_path: Path) -> None:
    other = published.model_copy(update={"spec_sha256": "0" * 64})
    run.storage.put(run.keys.attempt(1).published, canonical_bytes(other))
    assert published_adapter(attempt(run, 2), tmp_path / "adapter") is None
