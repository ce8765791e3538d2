"""What the children tell, kept for the report and the result, and logged as it comes."""

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from job.contract.documents import TrainSummary
from job.contract.errors import BugError
from job.contract.events import (
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
    Versions,
)
from job.stages import Stages

log = structlog.get_logger()


@dataclass
class Heard:
    """All that the children have told so far.

    Args:
        stages: follows the training's steps, for the heartbeat.
        on_trained: called the moment that the adapter is whole on scratch.
    """

    stages: Stages
    on_trained: Callable[[TrainSummary], None]
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
        eval_loss = self.evaluations[-1].loss if self.evaluations else None
        return self.trained.model_copy(update={"eval_loss": eval_loss})

    def hear(self, event: Event) -> None:
        """Takes one event in."""
        match event:
            case Versions():
                self.versions = event.versions
            case Loaded():
                self.loaded = event
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
        facts = event.model_dump(exclude={"event", "schema_version"})
        if isinstance(event, SampleText):
            log.debug("answer text", **facts)
        elif isinstance(event, Trained):
            log.info("trained", **facts["summary"])
            self.on_trained(event.summary)
        else:
            log.info(_NAMES.get(type(event), event.event), **facts)


_NAMES = {Saved: "checkpoint", Sample: "answer", Loaded: "base model loaded"}
