"""What the children tell, kept for the report and the result, and logged as it comes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from job.contract.documents import TrainSummary
from job.contract.errors import BugError
from job.contract.events import (
    Alive,
    Evaluated,
    Event,
    Exported,
    Exporting,
    Loaded,
    Sample,
    SampleText,
    Saved,
    Step,
    Trained,
    Training,
    Versions,
)
from job.stages import Stages

log = structlog.get_logger()


def _nothing(_: object) -> None:
    """For what nobody waits for."""


@dataclass
class Heard:
    """All that the children have told so far.

    Args:
        stages: follows the training's steps, for the heartbeat.
        on_loaded: called when the base model is loaded.
        on_training: called when there begins to be something to save.
        on_saved: called when a checkpoint is whole on scratch.
        on_trained: called the moment that the adapter is whole on scratch.
    """

    stages: Stages
    on_loaded: Callable[[Loaded], None] = _nothing
    on_training: Callable[[Training], None] = _nothing
    on_saved: Callable[[Saved], None] = _nothing
    on_trained: Callable[[TrainSummary], None] = _nothing
    versions: dict[str, str] = field(default_factory=dict)
    loaded: Loaded | None = None
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluated] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    exported: list[Exported] = field(default_factory=list)
    trained: TrainSummary | None = None

    @property
    def summary(self) -> TrainSummary:
        """What training measured; a child that ended well without telling it is a bug."""
        if self.trained is None:
            raise BugError("training ended with code 0 and never told that it was done")
        if not self.evaluations:
            return self.trained
        return self.trained.model_copy(update={"eval_loss": self.evaluations[-1].loss})

    @staticmethod
    def said(line: str) -> None:
        """Takes in a line that a child printed."""
        log.info("said", text=line)

    def hear(self, event: Event) -> None:
        """Takes one event in."""
        match event:
            case Versions():
                self.versions = event.versions
            case Loaded():
                self.loaded = event
            case Training():
                self.stages.step, self.stages.of = event.step, event.of
            case Step():
                self.steps.append(event)
                self.stages.step, self.stages.of, self.stages.loss = event.step, event.of, event.loss
                self.stages.tokens_per_second, self.stages.eta_seconds = event.tokens_per_second, event.eta_seconds
            case Evaluated():
                self.evaluations.append(event)
            case Sample():
                self.samples.append(event)
            case Exporting() if self.stages.current == "export":
                self.stages.step, self.stages.of = event.step, event.of
            case Exported():
                self.exported.append(event)
            case Trained():
                self.trained = event.summary
            case _:
                pass
        self._log(event)
        match event:
            case Loaded():
                self.on_loaded(event)
            case Training():
                self.on_training(event)
            case Saved():
                self.on_saved(event)
            case Trained():
                self.on_trained(event.summary)
            case _:
                pass

    def _log(self, event: Event) -> None:
        facts = event.model_dump(exclude={"event", "schema_version"})
        if isinstance(event, SampleText | Alive):
            log.debug(_NAMES.get(type(event), event.event), **facts)
        elif isinstance(event, Trained):
            log.info("trained", **facts["summary"])
        else:
            log.info(_NAMES.get(type(event), event.event), **facts)


_NAMES = {Saved: "checkpoint", Sample: "answer", SampleText: "answer text", Loaded: "base model loaded"}
