"""A run that there is time to interrupt, and how it must have ended."""

from itertools import pairwise

from job.contract.exits import Exit
from job.storage.opening import open_storage
from launcher import Launcher
from launcher.evidence import has_ended
from launcher.kube import Json
from launcher.manifest import Manifest, set_env, trainer
from launcher.status import Phase
from tests.cluster.conftest import SECONDS, until
from tests.cluster.node.attempts import Attempt, assert_whole, kept
from tests.cluster.node.conftest import TRAINING, Bench


def trains(bench: Bench, seconds: float = 0.25) -> tuple[Launcher, str]:
    """A run that has a checkpoint in the store, and most of its steps to go, of so many seconds each."""
    launcher = bench.launcher(few_failures)
    run = launcher.launch(bench.config(f"seconds {seconds}", training=TRAINING)).run_id
    until(lambda: kept(open_storage(bench.root), run))
    return launcher, run


def few_failures(template: Manifest) -> None:
    """One is borne; there is time to save oneself on a slow machine, and who dies without a word is given up soon.

    A node that is lost is given up only by who says so.
    """
    pod = template["spec"]["template"]["spec"]
    template["spec"]["backoffLimit"] = 1
    pod["terminationGracePeriodSeconds"] = 15
    for toleration in pod["tolerations"]:
        if "tolerationSeconds" in toleration:
            toleration["tolerationSeconds"] = 900
    set_env(trainer(template), "FINETUNE_STALE_SECONDS", "10")


def ends_whole(bench: Bench, launcher: Launcher, run: str, uninterrupted: str, attempt: int = 2) -> list[Attempt]:
    """The attempts of a run that comes to its end by this one, none of them counted as a failure."""
    ended = launcher.wait(run, timeout=SECONDS)
    assert (ended.phase, ended.attempt) == (Phase.SUCCEEDED, attempt), ended
    until(lambda: condition(bench, run, "Complete"))
    job = bench.cluster.get_job(run)
    assert job
    assert not job["status"].get("failed"), job["status"]
    return assert_whole(open_storage(bench.root), run, uninterrupted)


def assert_stopped_and_resumed(found: list[Attempt]) -> None:
    """All but the last attempt saved themselves when they were told to, and each next one went on from there."""
    assert [attempt.code for attempt in found] == [Exit.INTERRUPTED] * (len(found) - 1) + [Exit.OK]
    for before, after in pairwise(found):
        assert after.told("resumed") == before.kept[-1:] == before.told("step")[-1:]


def condition(bench: Bench, run: str, kind: str) -> bool:
    """Whether a Job has that condition."""
    job = bench.cluster.get_job(run)
    conditions: list[Json] = (job or {}).get("status", {}).get("conditions", [])
    return any((one["type"], one["status"]) == (kind, "True") for one in conditions)


def living_pods(bench: Bench, run: str) -> list[str]:
    """The names of the pods that have not ended."""
    return [pod["metadata"]["name"] for pod in bench.pods(run) if not has_ended(pod)]
