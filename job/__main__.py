"""The edge: flags and environment in, log and exit code out."""

import os
import signal
import sys
from collections.abc import Sequence

_END_SECONDS = 3
_LAST_WORDS_SECONDS = 5


def main(argv: Sequence[str]) -> int:
    """Runs the job; the exit code is of the table."""
    # SIGTERM waits until somebody can answer it. So whatever takes long to import comes after this.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    from job.contract.errors import JobError, KilledError, UsageError
    from job.settings import read_settings

    try:
        settings = read_settings(argv)
    except UsageError as error:
        print(f"{error.message}. {error.resolution}", file=sys.stderr)
        tell_usage(error)
        return error.code

    import structlog  # as all that follows, after --help, which should cost nothing

    from job.logs import choose_renderer, configure

    buffer = configure(choose_renderer())
    log = structlog.get_logger()
    log.info("start", config=settings.config)  # before what takes seconds to import on a slow machine

    from job import supervisor
    from job.children import end_running
    from job.interruption import Interruption, Overtaken, ToldToStop
    from job.outcome import outcome_of, write_termination_message
    from job.stages import Stages

    stages = Stages()
    ended_by: BaseException | None = None

    def give_up(why: str) -> None:
        """Ends the process without unwinding. Does not log: the signal may have come while a line was written."""
        outcome = outcome_of(KilledError(why, "", signal.SIGTERM), stages)
        write_termination_message(settings.termination_log, outcome)
        end_running(settings.hurried(_END_SECONDS))
        interruption.last_words(outcome, settings.hurried(_LAST_WORDS_SECONDS))
        os._exit(outcome.code)

    interruption = Interruption(settings.grace_seconds, give_up)
    try:
        interruption.listen()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if result := supervisor.run(settings, stages, buffer, interruption):
            supervisor.show_where(result, settings.runs.rstrip("/"))
    except BaseException as error:
        ended_by = error
    interruption.over()  # what is left is to tell how
    outcome = outcome_of(ended_by, stages)
    if ended_by:
        unforeseen = not isinstance(ended_by, JobError | KeyboardInterrupt | ToldToStop | Overtaken)
        log.error(
            outcome.message,
            code=outcome.code,
            name=outcome.name,
            resolution=outcome.resolution,
            exc_info=ended_by if unforeseen else None,
        )
    write_termination_message(settings.termination_log, outcome)
    if interruption.has_come:
        sys.stdout.flush()
        os._exit(outcome.code)  # the threads of an upload that hangs would be waited for
    return outcome.code


def tell_usage(error: BaseException) -> None:
    """The ending of a start that never began."""
    from pathlib import Path

    from job.outcome import outcome_of, write_termination_message
    from job.stages import Stages

    path = os.environ.get("FINETUNE_TERMINATION_LOG", "/dev/termination-log")
    write_termination_message(Path(path), outcome_of(error, Stages()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
