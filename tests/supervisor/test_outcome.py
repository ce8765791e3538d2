import errno
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job.contract.documents import Outcome
from job.contract.errors import DataError
from job.contract.exits import Exit
from job.outcome import outcome_of, write_termination_message
from job.stages import Stages


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (DataError("m"), 65),
        (OSError(errno.ENOSPC, "No space left on device"), 74),
        (OSError(errno.EIO, "Input/output error"), 74),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), 74),
        (OSError(errno.ENOENT, "No such file"), 70),
        (ValueError("surprise"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_ending_has_its_code(error: BaseException | None, code: int) -> None:
    assert outcome_of(error, Stages()).code == code


@given(st.text(max_size=20_000))
def test_the_termination_message_fits_and_is_whole(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "termination-log"
    write_termination_message(path, outcome_of(DataError(text, "mend it"), Stages()))
    body = path.read_bytes()
    outcome = Outcome.model_validate_json(body)
    assert len(body) <= 4096
    assert outcome.code == Exit.DATA
    assert outcome.resolution == "mend it"
    assert text.startswith(outcome.message)


def test_a_message_that_nobody_reads_ends_nothing(tmp_path: Path) -> None:
    write_termination_message(tmp_path / "no" / "such" / "place", outcome_of(None, Stages()))
