"""A run's artifacts on the disk, from a real S3 server and from a directory."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from job.contract.documents import Artifact, Artifacts, Latest, Result, TrainSummary
from job.contract.errors import DataError, JobError, NoInputError, UsageError
from job.contract.keys import RunKeys, latest_key
from job.contract.model import canonical_bytes, sha256_hex
from job.storage import Storage
from job.storage.opening import open_storage
from launcher.pulling import chosen, path_of, pull
from tests.conftest import ROOT

RUN = "bot-0123456789"
FILES = {
    "lora": {"adapter_model.safetensors": b"weights" * 1000, "adapter_config.json": b"{}"},
    "gguf": {"bot.F16.gguf": b"f16" * 50_000, "bot.Q4_K_M.gguf": b"q4" * 20_000, "Modelfile": b"FROM"},
    "report": {"report.html": b"<html>", "tensorboard/events": b"events"},
}
_SUMMARY = TrainSummary(
    steps=1,
    train_loss=1.0,
    eval_loss=None,
    tokens_seen=1,
    tokens_trained=1,
    trainable_parameters=1,
    total_parameters=1,
    effective_batch=1,
    seconds=1.0,
    device="cpu",
    dtype="float32",
    peak_memory_bytes=1,
    memory_after_load_bytes=1,
)


def artifact(kind: str, name: str, body: bytes) -> Artifact:
    key = f"{RunKeys(RUN).attempt(1).artifacts(kind)}{name}"
    return Artifact(key=key, size=len(body), sha256=sha256_hex(body))


def result_of(artifacts: Artifacts) -> Result:
    return Result(
        run_id=RUN,
        spec_sha256="a" * 64,
        attempt=1,
        artifacts=artifacts,
        train=_SUMMARY,
        seconds_by_stage={},
        gpu_seconds=0.0,
        versions={},
        image=None,
        code_version="1",
        code_revision=None,
    )


@pytest.fixture(params=["s3", "directory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A root with one finished run."""
    if request.param == "s3":
        return open_storage(request.getfixturevalue("bucket"))
    return open_storage(str(tmp_path / "runs"))


@pytest.fixture
def finished(storage: Storage) -> Result:
    kinds = {}
    for kind, files in FILES.items():
        kinds[kind] = tuple(artifact(kind, name, body) for name, body in files.items())
        for each, body in zip(kinds[kind], files.values(), strict=True):
            storage.put(each.key, body)
    result = result_of(Artifacts(**kinds))
    storage.put(RunKeys(RUN).result, canonical_bytes(result))
    return result


def on_disk(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


EVERYTHING = {f"{kind}/{name}": body for kind, files in FILES.items() for name, body in files.items()}


def test_everything_arrives_and_is_told(storage: Storage, finished: Result, tmp_path: Path) -> None:
    told: list[int] = []
    pulled = pull(storage, RUN, tmp_path / "out", progress=told.append)
    assert on_disk(tmp_path / "out") == EVERYTHING
    assert set(pulled.files) == {tmp_path / "out" / name for name in EVERYTHING}
    assert pulled.moved_bytes == sum(told) == sum(map(len, EVERYTHING.values()))


def test_a_second_pull_moves_nothing_and_a_third_what_is_missing_or_wrong(
    storage: Storage, finished: Result, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pull(storage, RUN, out)
    again = pull(storage, RUN, out)
    assert (again.moved_bytes, again.kept_bytes) == (0, sum(map(len, EVERYTHING.values())))
    (out / "lora" / "adapter_config.json").unlink()
    (out / "report" / "report.html").write_bytes(b"<htmX>")
    mended = pull(storage, RUN, out)
    assert mended.moved_bytes == len(b"{}") + len(b"<html>")
    assert on_disk(out) == EVERYTHING


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ("lora", {"lora/adapter_model.safetensors", "lora/adapter_config.json"}),
        ("q4_k_m", {"gguf/bot.Q4_K_M.gguf"}),
        ("gguf", {"gguf/bot.F16.gguf", "gguf/bot.Q4_K_M.gguf", "gguf/Modelfile"}),
    ],
)
def test_only_what_is_named(only: str, wanted: set[str], storage: Storage, finished: Result, tmp_path: Path) -> None:
    pull(storage, RUN, tmp_path / "out", only)
    assert on_disk(tmp_path / "out").keys() == wanted


def test_what_was_not_made_is_named_with_what_was(finished: Result) -> None:
    with pytest.raises(UsageError) as raised:
        chosen(finished, "q8_0")
    assert "bot.F16.gguf" in raised.value.resolution


def test_the_latest_of_a_name(storage: Storage, finished: Result, tmp_path: Path) -> None:
    stat = storage.head(RunKeys(RUN).result)
    assert stat
    latest = Latest(run_id=RUN, spec_sha256="a" * 64, spec_last_modified=stat.last_modified)
    storage.put(latest_key("bot"), canonical_bytes(latest))
    assert pull(storage, "bot@latest", tmp_path / "out", "lora").run_id == RUN
    with pytest.raises(NoInputError, match="no run of that name"):
        pull(storage, "other@latest", tmp_path / "out")


def test_an_object_that_was_replaced_is_refused_and_gets_no_name(
    storage: Storage, finished: Result, tmp_path: Path
) -> None:
    [one] = [each for each in finished.artifacts.gguf if each.key.endswith("Q4_K_M.gguf")]
    storage.put(one.key, b"Q4" * 20_000)
    with pytest.raises(DataError, match="SHA-256"):
        pull(storage, RUN, tmp_path / "out", "q4_k_m")
    assert on_disk(tmp_path / "out") == {}


def test_an_object_that_has_gone_is_named(storage: Storage, finished: Result, tmp_path: Path) -> None:
    gone = artifact("lora", "gone", b"")
    storage.put(RunKeys(RUN).result, canonical_bytes(result_of(Artifacts(lora=(gone,)))))
    with pytest.raises(NoInputError, match="gone"):
        pull(storage, RUN, tmp_path / "out")


def test_a_run_without_a_result_says_so(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no run bot"):
        pull(storage, RUN, tmp_path)
    storage.put(RunKeys(RUN).spec, b"{}")
    with pytest.raises(NoInputError, match="no result yet"):
        pull(storage, RUN, tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        f"runs/{RUN}/attempts/1/lora/../../x",
        f"runs/{RUN}/attempts/1/lora//x",
        "/etc/passwd",
        f"runs/{RUN}/attempts/1/gguf/x",
        f"runs/{RUN}/attempts/1/lora",
    ],
)
def test_a_key_that_leads_elsewhere_is_refused(key: str) -> None:
    with pytest.raises(DataError):
        path_of(Artifact(key=key, size=1, sha256="a" * 64), "lora")


def test_a_pull_that_is_killed_goes_on_where_it_was(bucket: str, tmp_path: Path) -> None:
    storage, out = open_storage(bucket), tmp_path / "out"
    bodies = {f"part-{number:02d}": bytes([number]) * (8 << 20) for number in range(12)}
    files = tuple(artifact("merged", name, body) for name, body in bodies.items())
    for each, body in zip(files, bodies.values(), strict=True):
        storage.put(each.key, body)
    storage.put(RunKeys(RUN).result, canonical_bytes(result_of(Artifacts(merged=files))))
    code = (
        "import sys; from pathlib import Path; from launcher.pulling import pull;"
        "from job.storage.opening import open_storage;"
        f"pull(open_storage('{bucket}'), '{RUN}', Path('{out}'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(out.glob("merged/part-*"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    there = {path.name: path.read_bytes() for path in out.glob("merged/part-*")}
    assert all(body == bodies[name] for name, body in there.items()), "what has its name is whole"
    rest = pull(storage, RUN, out)
    assert rest.kept_bytes >= 2 * (8 << 20)
    assert on_disk(out) == {f"merged/{name}": body for name, body in bodies.items()}, "and nothing is left beside them"


def test_every_error_is_ours(tmp_path: Path, storage: Storage, finished: Result) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(JobError):
        pull(storage, RUN, tmp_path / "file")
