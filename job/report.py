"""What a person looks at when a run is over: one page that works offline, and its figures as plain files.

Rows and answers are other people's text: all of it is escaped.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from job.base_model import BaseModel
from job.contract.documents import Artifacts, Spec
from job.contract.events import Evaluated, Sample, Step
from job.dataset.prepared import Prepared
from job.hearing import Heard

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
METRICS = "metrics.jsonl"
SAMPLES = "samples.json"

_INK, _MUTED, _GRID, _BLUE, _ORANGE = "#1f2430", "#667085", "#e4e7ec", "#2f6fde", "#d9730d"
_STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller, and in the page's own font
    "svg.hashsalt": "report",  # the same run gives the same bytes
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
}


@dataclass(frozen=True)
class RunFacts:
    """All that a report tells."""

    run_id: str
    root: str
    """What artifact keys are under."""
    spec: Spec
    base: BaseModel
    dataset: Prepared
    heard: Heard
    """What training and export told."""
    artifacts: Artifacts
    seconds_by_stage: Mapping[str, float]


@dataclass
class Answered:
    """One prompt with both answers."""

    prompt: str
    base: str | None = None
    tuned: str | None = None
    errors: dict[str, str] = field(default_factory=dict)


def write_report(directory: Path, facts: RunFacts) -> None:
    """Write report.html, metrics.jsonl (steps and evaluations, a line each) and samples.json into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    recipe, heard = facts.spec.recipe, facts.heard
    answers = pair_samples(heard.samples)
    page = (
        _environment()
        .get_template("report.html.jinja")
        .render(
            facts=facts,
            recipe=recipe,
            base=facts.base,
            dataset=facts.dataset,
            splits=[split for split in (facts.dataset.train, facts.dataset.eval) if split],
            summary=heard.summary,
            answers=answers,
            artifacts=[(kind, each) for kind, files in facts.artifacts for each in files],
            checks={PurePath(each.file).name: each.facts for each in heard.exported},
            config=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            training_figure=training_figure(heard.steps, heard.evaluations),
            lengths_figure=lengths_figure(facts.dataset.train.lengths),
        )
    )
    (directory / PAGE).write_text(page, "utf-8")
    logged: list[Step | Evaluated] = [*heard.steps, *heard.evaluations]
    logged.sort(key=lambda event: event.step)
    (directory / METRICS).write_text("".join(f"{event.model_dump_json()}\n" for event in logged), "utf-8")
    settings = recipe.samples.model_dump(mode="json", exclude={"prompts"})
    samples = {"settings": settings, "samples": [asdict(answer) for answer in answers]}
    (directory / SAMPLES).write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n", "utf-8")


def pair_samples(samples: Sequence[Sample]) -> list[Answered]:
    """Each prompt's answers by the base and by the tuned model, in the order in which they were asked."""
    answers: dict[str, Answered] = {}
    for sample in samples:
        answer = answers.setdefault(sample.prompt, Answered(sample.prompt))
        if sample.error:
            answer.errors[sample.model] = sample.error
        elif sample.model == "base":
            answer.base = sample.answer
        else:
            answer.tuned = sample.answer
    return list(answers.values())


def training_figure(steps: Sequence[Step], evaluations: Sequence[Evaluated]) -> Markup:
    """Loss over steps, and below it the learning rate, as SVG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.8), layout="constrained")
        loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        at = [step.step for step in steps]
        loss.plot(at, [step.loss for step in steps], color=_BLUE, linewidth=1.6, label="train")
        if evaluations:
            evaluated = [evaluation.step for evaluation in evaluations]
            loss.plot(evaluated, [each.loss for each in evaluations], "o-", color=_ORANGE, markersize=4, label="eval")
            loss.legend(frameon=False)
        loss.set_ylabel("loss")
        rate.plot(at, [step.learning_rate for step in steps], color=_MUTED, linewidth=1.2)
        rate.set_ylabel("learning rate")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        rate.set_xlabel("step")
        return _svg(figure, "Loss and learning rate by step")


def lengths_figure(lengths: Mapping[str, int]) -> Markup:
    """Rows by their length in tokens, in powers of two, as SVG.

    Args:
        lengths: rows by the most tokens that they have, as `SplitReport` counts them.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ends = [int(end) for end in lengths]
    bins = [1 << bit for bit in range(min(ends).bit_length() - 1, max(ends).bit_length())] if ends else []
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 2.4), layout="constrained")
        axes = figure.subplots()
        bars = axes.bar([f"{end:,}" for end in bins], [lengths.get(str(end), 0) for end in bins], color=_BLUE)
        axes.bar_label(bars, fmt="{:,.0f}", color=_MUTED, padding=2)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("tokens in a row, at most")
        axes.set_ylabel("rows")
        return _svg(figure, "Rows by their length in tokens")


def _svg(figure: "Figure", title: str) -> Markup:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Title": title})
    svg = text.getvalue()
    return Markup(svg[svg.index("<svg") :])


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("job"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"size": size_text, "duration": duration_text, "count": "{:,}".format}
    return environment


def size_text(size: float) -> str:
    """A size in bytes for people: `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def duration_text(seconds: float) -> str:
    """A duration for people: `42.0 s`, `7 min 26 s`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
