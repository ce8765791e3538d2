"""A run's artifacts on the disk, from a real S3 server and from a directory."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.contract.documents import (
    Artifact,
    Artifacts,
    Cancelled,
    Claim,
    Latest,
    Lease,
    Outcome,
    Result,
)
from job.contract.errors import DataError, JobError, NoInputError, PermissionDenied, TakenError, UsageError
from job.contract.keys import RunKeys, latest_key
from job.contract.model import canonical_bytes, sha256_hex
from job.storage import Storage
from job.storage.local_files import is_unfinished, unfinished_file
from job.storage.opening import open_storage
from job.storage.s3_client import forget_client
from launcher.pulling import KINDS, path_of, pull, run_of
from tests.conftest import ROOT
from tests.results import result, spec
from tests.storage.faulty_s3 import Answer, Request, Send, faulty_s3, says

RUN = "bot-0123456789"
FILES = {
    "lora": {"adapter_model.safetensors": b"weights" * 1000, "adapter_config.json": b"{}"},
    "gguf": {"bot.F16.gguf": b"f16" * 50_000, "bot.Q4_K_M.gguf": b"q4" * 20_000, "Modelfile": b"FROM"},
    "merged": {"model.safetensors": b"large" * 2_000_000},
    "report": {"report.html": b"<html>", "tensorboard/events": b"events"},
}


KEYS = RunKeys(RUN)


def artifact(kind: str, name: str, body: bytes, run_id: str = RUN) -> Artifact:
    key = f"{RunKeys(run_id).attempt(1).artifacts(kind)}{name}"
    return Artifact(key=key, size=len(body), sha256=sha256_hex(body))


def publish(storage: Storage, files: dict[str, dict[str, bytes]], name: str = "bot") -> Result:
    """A run that made these files."""
    made = {kind: tuple(artifact(kind, *file) for file in bodies.items()) for kind, bodies in files.items()}
    for kind, bodies in files.items():
        for one, body in zip(made[kind], bodies.values(), strict=True):
            storage.put(one.key, body)
    whole = result(run_id=RUN, artifacts=Artifacts(**made))
    storage.put(KEYS.spec, canonical_bytes(spec(name)))
    storage.put(KEYS.result, canonical_bytes(whole))
    return whole


@pytest.fixture(params=["s3", "directory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    root = request.getfixturevalue("bucket") if request.param == "s3" else tmp_path / "runs"
    return open_storage(str(root))


@pytest.fixture
def finished(storage: Storage) -> Result:
    return publish(storage, FILES)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def on_disk(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


EVERYTHING = {f"{kind}/{name}": body for kind, files in FILES.items() for name, body in files.items()}
ALL_BYTES = sum(map(len, EVERYTHING.values()))


def test_everything_arrives_and_is_told(storage: Storage, finished: Result, out: Path) -> None:
    told: list[int] = []
    pulled = pull(storage, RUN, out, progress=told.append)
    assert on_disk(out) == EVERYTHING
    assert sorted(pulled.files) == sorted(out / name for name in EVERYTHING)
    assert (pulled.run_id, pulled.moved_bytes, sum(told), pulled.kept_bytes) == (RUN, ALL_BYTES, ALL_BYTES, 0)


def test_a_second_pull_moves_nothing_and_a_third_what_is_missing_or_wrong(
    storage: Storage, finished: Result, out: Path
) -> None:
    pull(storage, RUN, out)
    told: list[int] = []
    again = pull(storage, RUN, out, progress=told.append)
    assert (again.moved_bytes, again.kept_bytes, told) == (0, ALL_BYTES, [])
    (out / "lora" / "adapter_config.json").unlink()
    (out / "report" / "report.html").write_bytes(b"<htmX>")  # of the right size
    (out / "gguf" / "Modelfile").write_bytes(b"FROM elsewhere")
    mended = pull(storage, RUN, out)
    assert mended.moved_bytes == len(b"{}<html>FROM")
    assert on_disk(out) == EVERYTHING


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ("lora", {"lora/adapter_model.safetensors", "lora/adapter_config.json"}),
        ("gguf", {"gguf/bot.F16.gguf", "gguf/bot.Q4_K_M.gguf", "gguf/Modelfile"}),
        ("report", {"report/report.html", "report/tensorboard/events"}),
        ("merged", {"merged/model.safetensors"}),
        ("q4_k_m", {"gguf/bot.Q4_K_M.gguf"}),
        ("Q4_K_M", {"gguf/bot.Q4_K_M.gguf"}),
        ("f16", {"gguf/bot.F16.gguf"}),
    ],
)
def test_only_what_is_named_is_fetched(
    only: str, wanted: set[str], storage: Storage, finished: Result, out: Path
) -> None:
    pulled = pull(storage, RUN, out, only)
    assert on_disk(out) == {name: EVERYTHING[name] for name in wanted}
    assert pulled.moved_bytes == sum(len(EVERYTHING[name]) for name in wanted)


@pytest.mark.parametrize("line", ["bot", "bot-lora"])
def test_the_adapter_as_gguf_is_no_quantization_of_the_model(line: str, storage: Storage, out: Path) -> None:
    publish(storage, {"gguf": {f"{line}.F16.gguf": b"model", f"{line}-lora.F16.gguf": b"adapter"}}, line)
    pull(storage, RUN, out, "f16")
    assert on_disk(out) == {f"gguf/{line}.F16.gguf": b"model"}
    with pytest.raises(UsageError) as raised:
        pull(storage, RUN, out, "q8_0")
    assert raised.value.resolution == "It made: gguf, f16."


@pytest.mark.parametrize("only", ["q8_0", "loras", "", "modelfile", "*"])
def test_what_was_not_made_is_refused_with_what_was(only: str, storage: Storage, finished: Result, out: Path) -> None:
    with pytest.raises(UsageError, match=f"{RUN} made no") as raised:
        pull(storage, RUN, out, only)
    assert raised.value.resolution == "It made: lora, gguf, merged, report, f16, q4_k_m."
    assert not out.exists()


def test_a_kind_that_the_run_did_not_make_is_refused(storage: Storage, out: Path) -> None:
    publish(storage, {"lora": {"adapter_config.json": b"{}"}})
    with pytest.raises(UsageError) as raised:
        pull(storage, RUN, out, "merged")
    assert raised.value.resolution == "It made: lora."


def test_a_run_that_made_nothing_gives_nothing(storage: Storage, out: Path) -> None:
    publish(storage, {})
    assert pull(storage, RUN, out).files == ()


def test_the_latest_of_a_name(storage: Storage, finished: Result, out: Path) -> None:
    latest = Latest(run_id=RUN, spec_sha256="a" * 64, spec_last_modified=datetime.now(UTC))
    storage.put(latest_key("bot"), canonical_bytes(latest))
    assert pull(storage, "bot@latest", out, "lora").run_id == RUN
    with pytest.raises(NoInputError, match="no run of that name") as raised:
        pull(storage, "other@latest", out)
    assert f"{storage.uri}/models/other/latest.json" in raised.value.message


def test_a_night_on_which_nothing_changed_gives_the_files_of_the_run_that_made_them(
    storage: Storage, finished: Result, out: Path
) -> None:
    night = "nightly-29384756"
    same = result(run_id=night, artifacts=finished.artifacts, same_as=RUN)
    storage.put(RunKeys(night).spec, canonical_bytes(spec()))
    storage.put(RunKeys(night).result, canonical_bytes(same))
    assert pull(storage, night, out, "q4_k_m").run_id == night
    assert on_disk(out) == {"gguf/bot.Q4_K_M.gguf": EVERYTHING["gguf/bot.Q4_K_M.gguf"]}


@pytest.mark.parametrize(
    "what", ["", "@latest", "bot@", "bot@newest", "bot@latest@latest", "Bot", "../bot", "a/b@latest"]
)
def test_what_can_be_neither_run_nor_name_is_refused(what: str, storage: Storage, out: Path) -> None:
    with pytest.raises(UsageError, match="neither a run id nor NAME@latest"):
        pull(storage, what, out)


@given(st.text() | st.from_regex(r"[-a-z0-9./]{0,70}(@latest)?", fullmatch=True))
def test_any_word_means_a_run_or_is_refused(what: str) -> None:
    with suppress(UsageError, NoInputError):
        assert run_of(open_storage("/nowhere"), what) == what


@pytest.mark.parametrize(
    ("kind", "name", "body", "why"),
    [
        ("gguf", "bot.Q4_K_M.gguf", b"Q4" * 20_000, "SHA-256 differs"),
        ("gguf", "bot.Q4_K_M.gguf", b"q4", "has 2 bytes instead of 40000"),
        ("merged", "model.safetensors", b"LARGE" * 2_000_000, "SHA-256 differs"),  # fetched in parts
    ],
)
def test_an_object_that_was_replaced_is_refused_and_gets_no_name(
    kind: str, name: str, body: bytes, why: str, storage: Storage, finished: Result, out: Path
) -> None:
    storage.put(artifact(kind, name, b"").key, body)
    (out / kind).mkdir(parents=True)
    (out / kind / name).write_bytes(b"of another run")
    with pytest.raises(DataError, match=why) as raised:
        pull(storage, RUN, out, kind)
    assert f"{storage.uri}/{artifact(kind, name, b'').key}" in raised.value.message
    left = on_disk(out)
    assert left.pop(f"{kind}/{name}") == b"of another run", "what was there stays"
    assert left.items() <= EVERYTHING.items(), "nothing half-written is left"


def test_an_object_that_has_gone_is_named(storage: Storage, out: Path) -> None:
    gone = artifact("lora", "gone", b"")
    storage.put(KEYS.result, canonical_bytes(result(run_id=RUN, artifacts=Artifacts(lora=(gone,)))))
    with pytest.raises(NoInputError, match=f"{gone.key} has gone"):
        pull(storage, RUN, out)
    assert on_disk(out) == {}


def test_a_run_that_is_not_there_is_told_so(storage: Storage, out: Path) -> None:
    with pytest.raises(NoInputError, match=f"there is no run {RUN} under {storage.uri}"):
        pull(storage, RUN, out)
    assert not out.exists()


def test_a_run_without_a_result_tells_how_far_it_came(storage: Storage, out: Path) -> None:
    def told() -> str:
        with pytest.raises(NoInputError, match=f"{RUN} has no result yet: ") as raised:
            pull(storage, RUN, out)
        return f"{raised.value.message}\n{raised.value.resolution}"

    storage.put(KEYS.config, b"frozen by the first attempt")
    assert "no attempt has begun" in told()
    storage.put(KEYS.spec, canonical_bytes(spec()))
    assert f"`finetune status {RUN}`" in told()
    storage.put(KEYS.attempt(1).claim, canonical_bytes(Claim(attempt=1, spec_sha256="a" * 64, owner="o", site="paris")))
    assert "attempt 1 (site paris) was last heard of" in told()
    lease = Lease(attempt=1, heartbeat_at=datetime.now(UTC), stage="train", step=3, of=9)
    storage.put(KEYS.lease, canonical_bytes(lease))
    assert "in the stage train, step 3 of 9" in told()
    outcome = Outcome(code=65, name="DATA", stage="train", message="row 7 is bad", resolution="Mend row 7.")
    storage.put(KEYS.attempt(1).outcome, canonical_bytes(outcome))
    assert "attempt 1 (site paris): it ended with 65 DATA in the stage train: row 7 is bad\nMend row 7." in told()
    storage.put(KEYS.attempt(2).claim, canonical_bytes(Claim(attempt=2, spec_sha256="a" * 64, owner="o")))
    assert "attempt 2 was last heard of" in told()
    assert "step 3" not in told()
    cancelled = Cancelled(by="ada", at=datetime.now(UTC), job_uid=None, attempt=2)
    storage.put(KEYS.attempt(2).outcome, canonical_bytes(outcome))
    storage.put(KEYS.cancelled, canonical_bytes(cancelled))
    assert "ada cancelled it, attempt 2: it ended with 65" in told()
    assert not out.exists()


@pytest.mark.parametrize(
    "key",
    [
        f"runs/{RUN}/attempts/1/lora/../../x",
        f"runs/{RUN}/attempts/1/lora/..",
        f"runs/{RUN}/attempts/1/lora//etc/passwd",
        f"runs/{RUN}/attempts/1/lora/a\nb",
        f"runs/{RUN}/attempts/1/lora/a\0b",
        f"runs/{RUN}/attempts/1/gguf/x",
        f"runs/{RUN}/attempts/1/lora",
        f"runs/{RUN}/attempts/x/lora/y",
        f"other/{RUN}/attempts/1/lora/y",
        "/etc/passwd",
        "",
    ],
)
def test_a_key_that_leads_elsewhere_is_refused_before_anything_is_fetched(
    key: str, storage: Storage, finished: Result, out: Path
) -> None:
    strange = Artifact(key=key, size=1, sha256="a" * 64)
    artifacts = finished.artifacts.model_copy(update={"lora": (*finished.artifacts.lora, strange)})
    storage.put(KEYS.result, canonical_bytes(result(run_id=RUN, artifacts=artifacts)))
    for only in (None, "report"):
        with pytest.raises(DataError, match=r"key|names"):
            pull(storage, RUN, out, only)
    assert not out.exists()


@given(st.sampled_from(KINDS), st.text() | st.lists(st.sampled_from(["..", ".", "", "a", "b.gguf"])).map("/".join))
def test_every_path_lies_under_its_kind(kind: str, name: str) -> None:
    try:
        path = path_of(f"{KEYS.attempt(1).artifacts(kind)}{name}", kind)
    except DataError:
        return
    assert path.as_posix() == f"{kind}/{name}"
    assert Path("/out", path).resolve().is_relative_to(f"/out/{kind}")


_KILLED = """
import os, signal, sys
from pathlib import Path
from job.storage.opening import open_storage
from launcher.pulling import pull

root, run, out, limit = sys.argv[1:]
moved = 0

def progress(size):
    global moved
    moved += size
    if moved > int(limit):
        os.kill(os.getpid(), signal.SIGKILL)

pull(open_storage(root), run, Path(out), progress=progress)
"""


@pytest.mark.parametrize("mebibytes", [5, 45, 70], ids=["among small ones", "in the first large one", "in the second"])
def test_a_pull_that_is_killed_goes_on_where_it_was(mebibytes: int, storage: Storage, out: Path) -> None:
    small = {f"small-{number:02d}": bytes([number]) * (1 << 20) for number in range(40)}
    large = {f"large-{number}": bytes([number]) * (24 << 20) for number in range(2)}
    files = small | large
    publish(storage, {"merged": files})
    arguments = [storage.uri, RUN, str(out), str(mebibytes << 20)]
    killed = subprocess.run([sys.executable, "-c", _KILLED, *arguments], cwd=ROOT, check=False)
    assert killed.returncode == -9
    cut = {path.name: path.read_bytes() for path in out.glob("merged/*")}
    unfinished = {name for name in cut if is_unfinished(name)}
    whole = {name: body for name, body in cut.items() if name not in unfinished}
    assert unfinished, "it was cut in the middle of a file"
    assert whole.items() <= files.items(), "what has its name is whole"
    assert len(whole) < len(files)
    if mebibytes > 40:
        assert whole.keys() >= small.keys()
    rest = pull(storage, RUN, out)
    assert rest.kept_bytes == sum(map(len, cut.values())), "also what was there of a file"
    assert rest.moved_bytes == sum(map(len, files.values())) - rest.kept_bytes
    assert on_disk(out) == {f"merged/{name}": body for name, body in files.items()}, "and nothing is left beside them"


@dataclass
class Cut:
    """A pull that was cut in the middle of a file, and the server between, which counts what passes from then on."""

    storage: Storage
    out: Path
    fetched: list[int]

    @property
    def part(self) -> Path:
        """What there is of the file."""
        (part,) = (path for path in self.out.glob("merged/*") if is_unfinished(path.name))
        return part


BIG = b"large" * 8_000_000
AT_CUT = 16 << 20


@pytest.fixture
def cut(seaweed: str, bucket: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cut]:
    fetched: list[int] = []

    def of_the_file(request: Request) -> bool:
        return request.method == "GET" and request.path.endswith("/model.safetensors")

    def ends_early(request: Request, send: Send) -> Answer:
        start = re.match(r"bytes=(\d+)-", request.headers.get("Range", ""))
        late = of_the_file(request) and start and int(start[1]) >= AT_CUT
        return says(403, "AccessDenied")(request, send) if late else send(request)

    def counts(request: Request, send: Send) -> Answer:
        answer = send(request)
        if of_the_file(request):
            fetched.append(len(answer.body))
        return answer

    storage = open_storage(bucket)
    publish(storage, {"merged": {"model.safetensors": BIG}, "lora": FILES["lora"]})
    with faulty_s3(seaweed) as (between, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        forget_client()
        between.faults = [ends_early]
        with pytest.raises(PermissionDenied):
            pull(open_storage(bucket), RUN, out)
        between.faults = [counts]
        yield Cut(open_storage(bucket), out, fetched)
    monkeypatch.undo()
    forget_client()


def test_a_pull_that_was_cut_within_a_file_fetches_the_rest_of_it(cut: Cut) -> None:
    assert cut.part.read_bytes() == BIG[:AT_CUT]
    assert not (cut.out / "merged" / "model.safetensors").exists()
    pulled = pull(cut.storage, RUN, cut.out, "merged")
    assert sum(cut.fetched) == pulled.moved_bytes == len(BIG) - AT_CUT
    assert pulled.kept_bytes == AT_CUT
    assert on_disk(cut.out / "merged") == {"model.safetensors": BIG}


def test_a_pull_of_another_kind_leaves_the_beginning_of_a_file_for_later(cut: Cut) -> None:
    pull(cut.storage, RUN, cut.out, "lora")
    assert cut.part.stat().st_size == AT_CUT


@pytest.mark.parametrize("spoiled", [b"other" + BIG[5:AT_CUT], BIG + b"more"], ids=["damaged", "too long"])
def test_a_beginning_that_is_spoiled_is_fetched_anew(spoiled: bytes, cut: Cut) -> None:
    cut.part.write_bytes(spoiled)
    pulled = pull(cut.storage, RUN, cut.out, "merged")
    assert on_disk(cut.out / "merged") == {"model.safetensors": BIG}
    assert (pulled.moved_bytes, pulled.kept_bytes) == (len(BIG), 0)


def test_the_beginning_of_another_run_s_file_is_not_gone_on_with(cut: Cut) -> None:
    other = b"other" * 4_000_000
    publish(cut.storage, {"merged": {"model.safetensors": other}})
    assert pull(cut.storage, RUN, cut.out).moved_bytes == sum(cut.fetched) == len(other)
    assert on_disk(cut.out / "merged") == {"model.safetensors": other}


def test_a_file_that_came_otherwise_leaves_no_beginning_behind(cut: Cut) -> None:
    (cut.out / "merged" / "model.safetensors").write_bytes(BIG)
    assert pull(cut.storage, RUN, cut.out, "merged").moved_bytes == 0
    assert on_disk(cut.out / "merged") == {"model.safetensors": BIG}


def test_files_of_the_same_content_do_not_meet(storage: Storage, out: Path) -> None:
    same = {f"{number:02d}": b"same" * 100_000 for number in range(16)}
    publish(storage, {"report": same})
    pull(storage, RUN, out)
    assert on_disk(out / "report") == same


def test_what_is_unfinished_and_of_no_file_of_the_run_is_removed_and_all_else_stays(
    storage: Storage, finished: Result, out: Path
) -> None:
    mine = {"gguf/.hidden": b"mine", "gguf/other.gguf": b"mine", ".keep": b"mine"}
    for name, body in mine.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(body)
    with unfinished_file(out / "gguf" / "bot.F16.gguf") as file:
        pull(storage, RUN, out, "lora")
        assert not Path(file.name).exists()
    assert on_disk(out) == mine | {name: body for name, body in EVERYTHING.items() if name.startswith("lora/")}


def test_two_pulls_do_not_meet_in_one_directory(storage: Storage, finished: Result, out: Path) -> None:
    met: list[JobError] = []

    def second(_: int) -> None:
        with pytest.raises(TakenError, match="another pull writes to") as raised:
            pull(storage, RUN, out)
        met.append(raised.value)

    pull(storage, RUN, out, progress=second)
    assert met
    assert on_disk(out) == EVERYTHING


def test_no_prefix_is_listed_and_what_is_there_is_not_asked_for(
    seaweed: str, bucket: str, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(open_storage(bucket), FILES)
    with faulty_s3(seaweed) as (between, url):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
        forget_client()
        pull(open_storage(bucket), RUN, out)
        first = list(between.seen)
        between.seen.clear()
        pull(open_storage(bucket), RUN, out)
        monkeypatch.undo()
        forget_client()
    assert len(first) > len(EVERYTHING)
    assert not [request.path for request in first if "list-type" in request.path or "prefix=" in request.path]
    assert [request.path.rpartition("/")[2] for request in between.seen] == ["result.json"]


@pytest.mark.parametrize("place", ["", "lora", "lora/adapter_config.json/below"])
def test_a_file_or_directory_that_stands_in_the_way_is_named(
    place: str, storage: Storage, finished: Result, out: Path
) -> None:
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    (out / place).write_bytes(b"mine")
    with pytest.raises(JobError, match=str(out / place).removesuffix("/below")):
        pull(storage, RUN, out)
    assert (out / place).read_bytes() == b"mine"
