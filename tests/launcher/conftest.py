"""A root of runs in each kind of store."""

from pathlib import Path

import pytest

from job.storage import Storage
from job.storage.opening import open_storage


@pytest.fixture(params=["directory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    root = tmp_path / "runs" if request.param == "directory" else request.getfixturevalue("bucket")
    return open_storage(str(root))
