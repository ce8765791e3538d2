"""The edge: flags and environment in, log and exit code out."""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from job.contract.errors import JobError, KilledError, UsageError
from job.settings import read_settings


def main(argv: Sequence[str]) -> int:
    """Runs the job; the exit code is of the table."""
    try:
        settings = read_settings(argv)
    except UsageError as error:
        print(f"{error.message}. {error.resolution}", file=sys.stderr)
        return tell_usage(error)

    # After --help, which should cost nothing.
    import structlog

    from job import supervisor
    from job.logs import choose_renderer, configure
    from job.outcome import outcome_of, write_termination_message
    from job.stages import Stages

    stages = Stages()
    buffer = configure(choose_renderer())
    log = structlog.get_logger()
    ended_by: BaseException | None = None
    try:
        signal.signal(signal.SIGTERM, _end)
        if result := supervisor.run(settings, stages, buffer):
            supervisor.show_where(result, settings.runs.rstrip("/"))
    except BaseException as error:
        ended_by = error
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is over: what is left is to tell how
    outcome = outcome_of(ended_by, stages)
    if ended_by:
        unforeseen = not isinstance(ended_by, JobError | KeyboardInterrupt)
        log.error(
            outcome.message,
            code=outcome.code,
            name=outcome.name,
            resolution=outcome.resolution,
            exc_info=ended_by if unforeseen else None,
        )
    write_termination_message(settings.termination_log, outcome)
    return outcome.code


def _end(signal_number: int, _: FrameType | None) -> None:
    """Ends the run where it stands: children end with the block that started them."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KilledError(f"ended by {signal.Signals(signal_number).name}", "", signal_number)


def tell_usage(error: UsageError) -> int:
    """The ending of a start that never began."""
    import os

    from job.outcome import outcome_of, write_termination_message
    from job.stages import Stages

    path = os.environ.get("FINETUNE_TERMINATION_LOG", "/dev/termination-log")
    write_termination_message(Path(path), outcome_of(error, Stages()))
    return error.code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
