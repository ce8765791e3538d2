"""docs/library.md, block by block, against a real control plane."""

import re
from pathlib import Path
from typing import Any

import pytest

from examples.cluster.control_plane import ControlPlane
from job.contract.documents import Cancelled
from job.contract.keys import RunKeys
from job.contract.model import canonical_bytes, read_document
from job.run import Run
from job.storage import Storage
from launcher.cluster import Cluster
from launcher.launching import Prepared
from launcher.scheduling import schedules
from tests.cluster.conftest import until
from tests.cluster.test_launching import fail
from tests.conftest import ROOT
from tests.launcher.runs import publish

PAGE = ROOT / "docs" / "library.md"


@pytest.fixture
def told(plane: ControlPlane, cluster: Cluster, storage: Storage, config_file: Path) -> dict[str, Any]:
    """The names that the page's blocks leave behind, all of them executed in one name space."""
    names: dict[str, Any] = {
        "CONFIG": config_file,
        "RUNS": storage.uri,
        "TEMPLATE": ROOT / "k8s" / "job.yaml",
        "KUBECONFIG": str(plane.kubeconfig()),
        "NAMESPACE": cluster.namespace,
    }
    text = PAGE.read_text("utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) == text.count("```python") > 5
    for block in blocks:
        above = "\n" * text[: block.start(1)].count("\n")  # so that a traceback names the page's own line
        exec(compile(above + block[1], str(PAGE), "exec"), names)
    return names


def test_the_page_does_what_it_says(
    told: dict[str, Any], prepared: Prepared, cluster: Cluster, storage: Storage, tmp_path: Path
) -> None:
    run_id, keys = prepared.run_id, RunKeys(prepared.run_id)
    # The notebook: launched, watched, cancelled; scheduled and unscheduled.
    launched = told["launched"]
    assert (launched.run_id, launched.created, launched.job["metadata"]["name"]) == (run_id, True, run_id)
    assert (told["status"].phase, told["log"]) == ("Pending", [])
    assert cluster.get_job(run_id) is None
    found = storage.get(keys.cancelled)
    assert found
    cancelled = read_document(Cancelled, found[0], keys.cancelled)
    assert (cancelled.by, cancelled.job_uid) == ("ada", launched.job["metadata"]["uid"])
    assert told["scheduled"].created
    until(lambda: not schedules(cluster), 30)

    # Airflow: a retried task finds the run, and its end is told.
    assert [told["submit"](told["CONFIG"]) for _ in range(2)] == [run_id, run_id]
    assert not told["has_ended"](run_id)
    fail(cluster, run_id)
    with pytest.raises(RuntimeError, match="no nodes available"):
        told["has_ended"](run_id)
    spec = storage.get(keys.spec)
    assert spec
    assert spec[0] == canonical_bytes(prepared.spec)
    publish(Run(storage, prepared.spec, run_id))
    assert told["has_ended"](run_id)

    # Dagster, and whoever takes the model.
    lines: list[str] = []
    metadata = told["materialize"](told["CONFIG"], lines.append)
    assert (metadata["run_id"], metadata["attempt"], len(lines)) == (run_id, 1, 1)
    [weights] = told["newest"]("bot", tmp_path / "out")
    assert weights.read_bytes() == b"weights"
