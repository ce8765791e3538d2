"""The Job of a run, made from the shipped template."""

import copy
from typing import Any

import pytest

from job.contract.errors import ConfigError
from job.contract.exits import IGNORED_CODES, RETRIED_CODES
from launcher.manifest import CONTAINER, PLACEHOLDER, SPEC_SHA256, Manifest, build_job, env_of, trainer
from tests.launcher.runs import submission


def job_with(template: Manifest, **compute: Any) -> Manifest:
    """The Job of a run that asks for so much."""
    return build_job(template, submission(**compute), "bot-0123456789", "a" * 64)


def test_the_pod_failure_policy_is_the_table_of_exit_codes(template: Manifest) -> None:
    on_disruption, on_ignored, on_others = template["spec"]["podFailurePolicy"]["rules"]
    assert on_disruption == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    assert (on_ignored["action"], on_others["action"]) == ("Ignore", "FailJob")
    assert on_ignored["onExitCodes"] == {
        "containerName": CONTAINER,
        "operator": "In",
        "values": sorted(IGNORED_CODES),
    }
    assert on_others["onExitCodes"] == {
        "containerName": CONTAINER,
        "operator": "NotIn",
        "values": sorted(IGNORED_CODES | RETRIED_CODES),
    }


def test_what_follows_from_the_config_is_filled_in_and_the_rest_is_left(template: Manifest) -> None:
    before = copy.deepcopy(template)
    job = job_with(template, cpus=2.5, memory_gib=6, scratch_gib=0.5, max_hours=1, gpus=2)
    assert template == before
    container = trainer(job)
    wanted = {"cpu": "2.5", "memory": "6Gi", "nvidia.com/gpu": 2}
    assert container["resources"] == {"requests": wanted, "limits": wanted}
    assert job["metadata"]["name"] == job["metadata"]["labels"]["app.kubernetes.io/instance"] == "bot-0123456789"
    assert job["metadata"]["annotations"][SPEC_SHA256] == "a" * 64
    assert job["spec"]["activeDeadlineSeconds"] == 3600
    assert env_of(job, "FINETUNE_CONFIG") == "s3://b/configs/c.yaml"
    [scratch] = [each for each in job["spec"]["template"]["spec"]["volumes"] if each["name"] == "scratch"]
    assert scratch["emptyDir"] == {"sizeLimit": "512Mi"}
    kept = ("podFailurePolicy", "backoffLimit", "ttlSecondsAfterFinished", "podReplacementPolicy")
    assert all(job["spec"][key] == before["spec"][key] for key in kept)
    pods = (job["spec"]["template"]["spec"], before["spec"]["template"]["spec"])
    assert pods[0]["securityContext"] == pods[1]["securityContext"]
    assert trainer(job)["securityContext"] == trainer(before)["securityContext"]


def test_a_pod_keeps_its_runs_where_its_launcher_looks_for_them(template: Manifest) -> None:
    assert env_of(template, "FINETUNE_RUNS") == PLACEHOLDER
    assert env_of(job_with(template), "FINETUNE_RUNS") == "s3://b"


def test_a_mig_resource_keeps_its_name(template: Manifest) -> None:
    trainer(template)["resources"]["limits"] = {"nvidia.com/mig-3g.40gb": 1}
    assert trainer(job_with(template))["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 1


def test_an_ephemeral_scratch_gets_its_size(template: Manifest) -> None:
    volumes = template["spec"]["template"]["spec"]["volumes"]
    volumes[0] = {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}}
    job = job_with(template, scratch_gib=300)
    claim = job["spec"]["template"]["spec"]["volumes"][0]["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert claim["resources"]["requests"] == {"storage": "300Gi"}


def test_a_queue_suspends_the_job_until_kueue_starts_it(template: Manifest) -> None:
    job = job_with(template, queue="gpu")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpu"
    assert "suspend" not in job_with(template)["spec"]


def test_everything_beyond_the_sites_ceilings_is_named_at_once(template: Manifest) -> None:
    with pytest.raises(ConfigError) as raised:
        job_with(template, gpus=9, max_hours=100, priority="urgent")
    for words in ("compute.gpus is 9, at most 8", "compute.max_hours is 100, at most 72", "urgent"):
        assert words in raised.value.message


def test_an_allowed_priority_is_taken(template: Manifest) -> None:
    template["metadata"]["annotations"]["finetune.local/max-priority"] = "low, urgent"
    job = job_with(template, priority="urgent")
    assert job["spec"]["template"]["spec"]["priorityClassName"] == "urgent"


@pytest.mark.parametrize("part", ["containers", "volumes"])
def test_a_template_without_a_part_says_which(part: str, template: Manifest) -> None:
    for each in template["spec"]["template"]["spec"][part]:
        each["name"] = "other"
    with pytest.raises(ConfigError, match="trainer" if part == "containers" else "scratch"):
        job_with(template)


def test_the_job_knows_how_long_its_pod_has_to_save_itself(template: Manifest) -> None:
    template["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 300
    assert env_of(job_with(template), "FINETUNE_GRACE_SECONDS") == "250"
