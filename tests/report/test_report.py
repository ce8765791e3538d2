"""The report: one page that stands alone, shows what it should, and never runs what a row or an answer says."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from job.base_model import BaseModel
from job.contract.config import Recipe
from job.contract.documents import Artifact, Artifacts, FrozenDataset, FrozenModel, FrozenObject, Spec, TrainSummary
from job.contract.events import Evaluated, Exported, Sample, Step
from job.dataset.prepared import Prepared, Span, SplitReport
from job.dataset.rejects import Reject
from job.hearing import Heard
from job.report import RunFacts, duration_text, pair_samples, size_text, write_report
from job.stages import Stages

HOSTILE = "</div></span><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7 * 7 }}"


class Page(HTMLParser):
    """A page's tags, its text, and every address that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture
def spec(recipe: Recipe) -> Spec:
    return Spec(
        recipe=recipe,
        gpus=0,
        base_model=FrozenModel(uri=recipe.base_model, files=()),
        dataset=FrozenDataset(train=(FrozenObject(uri="s3://data/rows.jsonl", size=2048, etag="x"),)),
        image=None,
        code_version="0.1.0",
    )


def split(**keys: Any) -> SplitReport:
    counts = {name: 0 for name, field in SplitReport.model_fields.items() if field.annotation is int}
    return SplitReport(**{**counts, "bad": {}, "formats": {}, "lengths": {}, **keys})


@pytest.fixture
def dataset() -> Prepared:
    return Prepared(
        train=split(
            read=110,
            rows=100,
            formats={"sharegpt": 90, "messages": 20},
            bad={"unknown_role": 6},
            tokens=4000,
            trained_tokens=1000,
            longest=2000,
            lengths={"16": 3, "32": 90, "2048": 7},
            duplicates=7,
        ),
        eval=split(read=4, rows=4, tokens=40, trained_tokens=20),
        overlap=2,
        shown=(Span(text="<|user|>Hello<|end|>", trained=False), Span(text="Hello, too<|end|>", trained=True)),
        rejects=(Reject(file="rows.jsonl", where="line 12", reason="unknown_role", message="no such role"),),
        warnings=("7 % of the rows are duplicates",),
    )


@pytest.fixture
def heard(summary: TrainSummary) -> Heard:
    return Heard(
        Stages(),
        on_trained=lambda _: None,
        versions={"peft": "0.21.2"},
        steps=[
            Step(step=n, of=3, loss=3.0 / n, learning_rate=1e-4, grad_norm=1, tokens_per_second=9, eta_seconds=0)
            for n in (1, 2, 3)
        ],
        evaluations=[Evaluated(step=2, loss=1.75)],
        samples=[
            Sample(model="base", prompt="Who are you?", answer="A model."),
            Sample(model="tuned", prompt="Who are you?", answer="Your helper."),
        ],
        exported=[Exported(kind="gguf", file="/scratch/gguf/x.Q8_0.gguf", size=1536, facts={"file_type": 7})],
        trained=summary,
    )


@pytest.fixture
def facts(spec: Spec, base: BaseModel, dataset: Prepared, heard: Heard) -> RunFacts:
    artifact = Artifact(key="runs/x/attempts/1/gguf/x.Q8_0.gguf", size=1536, sha256="ab" * 32)
    return RunFacts(
        run_id="support-bot-0123456789",
        root="s3://runs",
        spec=spec,
        base=base,
        dataset=dataset,
        heard=heard,
        artifacts=Artifacts(gguf=(artifact,)),
        seconds_by_stage={"download": 1.0, "train": 75.2},
    )


def page_of(directory: Path, facts: RunFacts) -> Page:
    write_report(directory, facts)
    return Page((directory / "report.html").read_text())


def test_the_page_tells_what_the_run_was(tmp_path: Path, facts: RunFacts) -> None:
    page = page_of(tmp_path / "report", facts)
    for fact in (
        *("support-bot-0123456789", "s3://models/tiny/", "s3://data/rows.jsonl", "2.0 KiB", "apache-2.0"),
        *("1.2500", "123,456 of 1,234,567", "3.0 GiB", "1 min 15 s", "x.Q8_0.gguf", "file type 7", "1.5 KiB"),
        *("messages 20, sharegpt 90", "unknown role 6", "1,000 (25.0 %)", "20 (50.0 %)", "line 12: no such role"),
        *("7 % of the rows are duplicates", "eval rows also in train", "A model.", "Your helper.", "peft 0.21.2"),
    ):
        assert fact in page.words
    assert page.tags.count("svg") == 2
    assert "mark" in page.tags


def test_the_page_works_offline(tmp_path: Path, facts: RunFacts) -> None:
    page = page_of(tmp_path, facts)
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)


def test_other_peoples_text_stays_text(tmp_path: Path, facts: RunFacts) -> None:
    calm = page_of(tmp_path / "calm", facts)
    facts.heard.samples = [
        Sample(model="base", prompt=HOSTILE, answer=HOSTILE),
        Sample(model="tuned", prompt=HOSTILE, answer="", error=HOSTILE),
    ]
    facts.heard.exported = [Exported(kind="gguf", file="/x.Q8_0.gguf", size=1, facts={HOSTILE: HOSTILE})]
    dataset = facts.dataset.model_copy(
        update={
            "shown": (Span(text=HOSTILE, trained=False), Span(text=HOSTILE, trained=True)),
            "rejects": (Reject(file=HOSTILE, where="line 1", reason="not_text", message=HOSTILE, excerpt=HOSTILE),),
            "warnings": (HOSTILE,),
        }
    )
    page = page_of(tmp_path / "hostile", replace(facts, dataset=dataset, base=replace(facts.base, licence=HOSTILE)))
    assert page.tags == calm.tags
    # prompt, answer, error, two of a check, two spans, three of a reject, a warning, the licence
    assert page.words.count("<script>alert(1)</script>") == 12
    assert "{{ 7 * 7 }}" in page.words


def test_figures_for_machines(tmp_path: Path, facts: RunFacts) -> None:
    facts.heard.samples.append(Sample(model="base", prompt="Why?", answer="", error="ValueError: too long"))
    write_report(tmp_path, facts)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"], line["loss"]) for line in lines] == [
        ("step", 1, 3.0),
        ("step", 2, 1.5),
        ("evaluated", 2, 1.75),
        ("step", 3, 1.0),
    ]
    assert json.loads((tmp_path / "samples.json").read_text()) == {
        "settings": {"max_new_tokens": 128, "temperature": 1.5, "min_p": 0.1, "seed": 42},
        "samples": [
            {"prompt": "Who are you?", "base": "A model.", "tuned": "Your helper.", "errors": {}},
            {"prompt": "Why?", "base": None, "tuned": None, "errors": {"base": "ValueError: too long"}},
        ],
    }


def test_a_run_of_which_little_is_known(tmp_path: Path, facts: RunFacts, summary: TrainSummary) -> None:
    heard = Heard(Stages(), on_trained=lambda _: None, trained=summary.model_copy(update={"seconds": 0.0}))
    dataset = Prepared(train=split(), eval=None, overlap=0, shown=(), rejects=(), warnings=())
    bare = replace(facts, heard=heard, dataset=dataset, artifacts=Artifacts(), seconds_by_stage={})
    page = page_of(tmp_path, bare)
    assert "Samples" not in page.words
    assert "eval rows also in train" not in page.words
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_the_same_run_gives_the_same_page(tmp_path: Path, facts: RunFacts) -> None:
    for name in ("one", "two"):
        write_report(tmp_path / name, facts)
    assert (tmp_path / "one" / "report.html").read_bytes() == (tmp_path / "two" / "report.html").read_bytes()


def test_a_prompt_that_is_asked_twice_is_shown_once() -> None:
    samples = [Sample(model="tuned", prompt="Why?", answer=answer) for answer in ("first", "second")]
    assert [(answer.prompt, answer.tuned) for answer in pair_samples(samples)] == [("Why?", "second")]


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 * 1024**4, "5,120.0 GiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (446.5, "7 min 26 s"), (11_100, "3 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
