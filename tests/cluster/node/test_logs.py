"""The log of pods of a real node."""

import re

from launcher.log_lines import LogLine
from launcher.manifest import Manifest
from tests.cluster.conftest import SECONDS
from tests.cluster.node.conftest import Bench

LINES = 3_000


def numbers(texts: list[str]) -> list[int]:
    return [int(found[1]) for text in texts if (found := re.search(r'"text": "line (\d+)"', text))]


def test_promise_37_each_line_of_each_attempt_once(bench: Bench) -> None:
    launcher = bench.launcher(twice)
    run = launcher.launch(bench.config(f"lines {LINES}", "exit 69", "seconds 0.5")).run_id
    told = list(launcher.logs(run, follow=True))
    assert all(isinstance(line, LogLine) for line in told), [line for line in told if not isinstance(line, LogLine)]
    by_pod: dict[str, list[str]] = {}
    for line in told:
        assert isinstance(line, LogLine)
        by_pod.setdefault(line.source, []).append(line.text)
    assert len(by_pod) == 2, "two attempts, one pod each"
    for lines in by_pod.values():
        assert numbers(lines) == list(range(LINES))
    assert launcher.status(run).phase == "Failed"


def test_promise_58_the_log_of_a_run_whose_pods_are_gone_comes_from_the_store(bench: Bench) -> None:
    launcher = bench.launcher()
    run = launcher.launch(bench.config("lines 500")).run_id
    assert launcher.wait(run, timeout=SECONDS).phase == "Succeeded"
    from_pods = numbers([line.text for line in launcher.logs(run) if isinstance(line, LogLine)])
    job = bench.cluster.get_job(run)
    assert job
    bench.cluster.delete_job(run, job["metadata"]["uid"])
    bench.cluster.wait_until_gone(run, job["metadata"]["uid"])
    from_store = numbers([line.text for line in launcher.logs(run) if isinstance(line, LogLine)])
    assert from_pods == from_store == list(range(500))
    assert launcher.status(run).phase == "Succeeded"


def twice(template: Manifest) -> None:
    """One more attempt after the first."""
    template["spec"]["backoffLimit"] = 1
