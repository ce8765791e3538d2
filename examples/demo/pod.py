"""`python -m job`, started as a pod starts it: told everything by its environment."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

# Of this process's own environment a pod would have no more than these.
INHERITED = ("COLUMNS", "FINETUNE_LLAMA_CPP", "LANG", "NO_COLOR", "PATH", "TERM")


def closed_environment() -> dict[str, str]:
    """The variables that the job takes over from here when its site gives it all others."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ}


def start_job(config: str, runs: str, directory: Path, variables: Mapping[str, str], *flags: str) -> int:
    """Runs the job to its end, its output on this terminal.

    Args:
        config: the config's URI or path.
        runs: where runs are kept.
        directory: gets the scratch and the termination message.
        variables: the job's environment.
        flags: passed on.

    Returns:
        The job's exit code.
    """
    directory.mkdir(parents=True, exist_ok=True)
    told = {
        "FINETUNE_CONFIG": config,
        "FINETUNE_RUNS": runs,
        "FINETUNE_SCRATCH": str(directory / "scratch"),
        "FINETUNE_TERMINATION_LOG": str(directory / "termination-log"),
    }
    # setpriv: ends when this process is killed, too
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "job", *flags]
    process = subprocess.Popen(command, env={**variables, **told})
    try:
        return process.wait()
    except KeyboardInterrupt:  # it was told as well, and says how it ends
        return process.wait()
