"""A child's edge: it reads the plan, tells events on the pipe, and ends with a code of the table.

Imports nothing of the training stack, so that a child which cannot even import it still tells why.
"""

import faulthandler
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from job.contract.config import Recipe
from job.contract.errors import BugError, DataError, DeviceError, GpuOutOfMemory, JobError, LocalIOError, is_of_disk
from job.contract.events import Event, Failed
from job.contract.exits import Exit
from job.contract.plan import Plan


class Teller:
    """The writing end of the pipe. Of several ranks the first alone tells; a failure is told by whichever has it.

    Args:
        pipe: `plan.events`. Opening a FIFO waits for its reader.
    """

    def __init__(self, pipe: str | Path) -> None:
        self._file = os.open(pipe, os.O_WRONLY | os.O_APPEND)
        self._is_first = os.environ.get("RANK", "0") == "0"

    def tell(self, event: Event) -> None:
        """Writes one line, by one write."""
        if self._is_first or isinstance(event, Failed):
            os.write(self._file, event.model_dump_json().encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)


def run_child(work: Callable[[Plan, Teller], None], argv: Sequence[str]) -> int:
    """Does `work` on the plan whose path is `argv`'s one word.

    Returns:
        0, or the code of the error that ended it, which is told first; the traceback of one that nobody expected goes to
        stderr.
    """
    faulthandler.register(signal.SIGUSR1, file=2)  # asked by the supervisor when nothing is heard for long
    [path] = argv
    plan = Plan.model_validate_json(Path(path).read_bytes())
    with Teller(plan.events) as teller:
        try:
            work(plan, teller)
        except Exception as error:
            ending = ending_of(error, plan.recipe)
            if not Path(path).exists():  # a kubelet that has forgotten a pod empties its volumes while it still runs
                ending = LocalIOError(f"scratch was emptied: {error}", "The node has given this pod up.")
            if ending is not error or isinstance(error, BugError):  # nobody expected it
                traceback.print_exception(error)
            teller.tell(Failed(code=ending.code, message=ending.message[:2000], resolution=ending.resolution))
            return ending.code
    return Exit.OK


def ending_of(error: Exception, recipe: Recipe) -> JobError:
    """What an exception that no one expected means for the run."""
    if isinstance(error, JobError):
        return error
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, pickle.UnpicklingError):  # what loading by `weights_only` refuses
        return DataError(f"a file holds more than tensors, and was not loaded: {said}", "Ask who wrote it.")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return GpuOutOfMemory(f"the GPU's memory is full: {said}", smaller(recipe))
    # A device-side assert is the program's fault (an index out of range); every other CUDA error is the device's.
    if isinstance(error, RuntimeError) and "CUDA error" in said and "device-side assert" not in said:
        return DeviceError(f"the GPU failed: {said}", "Look for an XID in the node's kernel log.")
    if is_of_disk(error):
        return LocalIOError(f"scratch cannot be written: {said}", "Raise compute.scratch_gib.")
    return BugError(said, "This should not happen; the traceback is in the log.")


def smaller(recipe: Recipe) -> str:
    """Which key to lower, and to what, when a GPU's memory does not hold the run. The effective batch stays."""
    training = recipe.training
    if not recipe.load_in_4bit:
        return "Set load_in_4bit: true."
    if (rows := training.per_device_train_batch_size) > 1:
        return (
            f"Lower training.per_device_train_batch_size from {rows} to {rows // 2} and set "
            f"training.gradient_accumulation_steps to {-(-rows * training.gradient_accumulation_steps // (rows // 2))}."
        )
    if recipe.max_seq_length > 512:
        return f"Lower max_seq_length from {recipe.max_seq_length} to {recipe.max_seq_length // 2}."
    return f"Lower lora.r from {recipe.lora.r} to {max(1, recipe.lora.r // 2)}, or ask for a larger GPU in compute.gpu_memory_gib."
