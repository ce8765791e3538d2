"""One namespace of a cluster: what the launcher asks of it, each question by its name."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from job.contract.errors import ConfigError, UnavailableError
from launcher.evidence import happened, moment
from launcher.kube import READ_SECONDS, Answer, Api, Json, connect
from launcher.manifest import MADE_BY, grace_seconds

_NIGHT, _POD = r"(-\d{8})?", r"(-[bcdfghjklmnpqrstvwxz2456789]{5})?"  # what Kubernetes puts after a name
JOB_UID = "batch.kubernetes.io/controller-uid"
"""The label of a pod that names its Job."""
_POD_SECURITY = "would violate PodSecurity"
_ENDING_SECONDS, _PAUSE_SECONDS = 60, 0.5  # beyond a pod's grace period
_FIELD_MANAGER = "finetune-launcher"
_MERGE = "application/merge-patch+json"
_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"


@dataclass(frozen=True)
class Cluster:
    """A namespace, and the API server that has it."""

    api: Api
    namespace: str

    @classmethod
    def connect(
        cls,
        kubeconfig: str | None = None,
        context: str | None = None,
        namespace: str | None = None,
        user: str | None = None,
    ) -> "Cluster":
        """The one that kubectl would reach.

        Raises:
            UsageError: there is no usable kubeconfig.
        """
        api, own = connect(kubeconfig, context, user)
        return cls(api, namespace or own)

    def now(self) -> datetime:
        """The API server's time: an age of what it tells is one by its clock."""
        return self.api.clock.now()

    # Jobs

    def create_job(self, job: Json, dry_run: bool = False) -> Json | None:
        """The Job as the API server took it; None when the name is taken.

        Raises:
            ConfigError: it is refused, in the server's words, or PodSecurity would refuse its pods.
            Lost: no answer came.
        """
        query = {"fieldValidation": "Strict", "fieldManager": _FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        answer = self.api.send("POST", self._batch("jobs"), query, job)
        if answer.status == 404:  # the namespace
            raise answer.error()
        if answer.status == 409:
            if dry_run:
                self._check_pod_security(answer)
            return None
        made = answer.json()
        self._check_pod_security(answer, None if dry_run else made)
        return made

    def check_pods(self, job: Mapping[str, Any], undo: bool = False) -> None:
        """Hears anew what `create_job` heard of a Job that is there: whoever made it may never have got the answer.

        One that has had a pod is none of those.

        Args:
            job: as it is.
            undo: delete it when it is refused, for we may have made it.

        Raises:
            ConfigError: PodSecurity refuses its pods.
        """
        if any(job.get("status", {}).get(pods) for pods in ("active", "terminating", "succeeded", "failed")):
            return
        metadata = job["metadata"]
        query, unchanged = {"fieldManager": _FIELD_MANAGER, "dryRun": "All"}, {"metadata": {"uid": metadata["uid"]}}
        answer = self.api.send("PATCH", self._batch("jobs", metadata["name"]), query, unchanged, _MERGE)
        if undo:
            self._check_pod_security(answer, job)
        self._check_pod_security(
            answer, advice=f" `finetune cancel {metadata['name']}` takes away the Job that is there."
        )

    def get_job(self, name: str) -> Json | None:
        """A Job, None when there is none."""
        answer = self.api.send("GET", self._batch("jobs", name))
        return None if answer.status == 404 else answer.json()

    def delete_job(self, name: str, uid: str) -> bool:
        """Deletes the Job with that very uid, its pods first; False when it is not there any more."""
        return self._delete("jobs", name, uid, "Foreground")

    def wait_until_gone(self, name: str, uid: str) -> None:
        """Returns when a Job that was deleted is gone, and its pods with it.

        Raises:
            UnavailableError: it is still there a minute after its pods' grace period, because a node is away.
        """
        began = time.monotonic()
        while (there := self.get_job(name)) and there["metadata"]["uid"] == uid:
            seconds = grace_seconds(there) + _ENDING_SECONDS
            if time.monotonic() - began > seconds:
                raise UnavailableError(
                    f"the Job {name} is not gone {seconds} s after its deletion: a pod of it does not end",
                    f"`finetune why {name}` says what holds it.",
                )
            time.sleep(_PAUSE_SECONDS)

    def patch_job(self, name: str, uid: str, change: Json) -> Json | None:
        """Merges a change into the Job with that very uid; None when it is not there any more."""
        metadata = {**change.get("metadata", {}), "uid": uid}  # another uid is a conflict
        answer = self.api.send(
            "PATCH",
            self._batch("jobs", name),
            {"fieldManager": _FIELD_MANAGER},
            {**change, "metadata": metadata},
            _MERGE,
        )
        return None if answer.status in (404, 409) else answer.json()

    def job_metadata(self, selector: str) -> Iterator[Json]:
        """The metadata of each Job with these labels, page by page: a tenth of the whole."""
        for page in self.api.pages(self._batch("jobs"), {"labelSelector": selector}, _METADATA_ONLY):
            for item in page["items"] or ():
                yield item["metadata"]

    def pending_pods(self) -> Iterator[Json]:
        """The metadata of each pod of the launcher's Jobs that has not started."""
        query = {"labelSelector": MADE_BY, "fieldSelector": "status.phase=Pending"}
        for page in self.api.pages(self._core("pods"), query, _METADATA_ONLY):
            for item in page["items"] or ():
                yield item["metadata"]

    def jobs(self, field_selector: str) -> tuple[list[Json], str]:
        """Jobs, and the place in history at which they were so: `watch_jobs` goes on from there."""
        pages = list(self.api.pages(self._batch("jobs"), {"fieldSelector": field_selector}))
        found = [item for page in pages for item in page["items"] or ()]
        return found, pages[-1]["metadata"]["resourceVersion"] if pages else "0"

    def watch_jobs(self, field_selector: str, resource_version: str, seconds: int) -> Iterator[bytes]:
        """The lines of a watch, JSON with `type` and `object`, for at most so many seconds.

        Raises:
            Gone: list again.
            Lost: cut, or silent for longer than the watch was to last.
        """
        query = {
            "fieldSelector": field_selector,
            "watch": "true",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(seconds),
        }
        return self.api.lines(self._batch("jobs"), query, seconds + 5)

    # Their pods

    def pods(self, job_uid: str) -> list[Json]:
        """The pods of a Job."""
        return self._items(self._core("pods"), {"labelSelector": f"{JOB_UID}={job_uid}"})

    def log(self, pod: str, container: str, since: str | None, follow: bool) -> Iterator[bytes]:
        """The lines of a container's log, each begun by its RFC 3339 time and a space.

        Args:
            pod: its name.
            container: its name.
            since: an RFC 3339 time; lines of that second come again.
            follow: whether to go on until the container has ended.

        Raises:
            Lost: cut, or silent for a minute.
            ConfigError: there is no log: the container has not started, or the pod has gone.
        """
        query = {"container": container, "timestamps": "true", "follow": str(follow).lower()}
        return self.api.lines(
            self._core("pods", f"{pod}/log"), query | ({"sinceTime": since} if since else {}), READ_SECONDS
        )

    def events(self, uid: str) -> list[Json]:
        """The events of one object, oldest first."""
        found = self._items(self._core("events"), {"fieldSelector": f"involvedObject.uid={uid}"})
        return sorted(found, key=happened)

    def events_of(self, name: str, since: str = "") -> list[Json]:
        """The events of a Job or CronJob and of all that Kubernetes names after it, oldest first.

        So those of pods that have gone are among them. An object of the same name may have been there before.

        Args:
            name: of a Job or CronJob.
            since: an RFC 3339 time; what happened last before it is left out.
        """
        found = self._items(self._core("events"), {})
        own = [event for event in found if _is_named_after(name, event["involvedObject"])]
        began = moment(since)
        return sorted((event for event in own if began is None or happened(event) >= began), key=happened)

    # Nights

    def apply_cronjob(self, cronjob: Json, dry_run: bool = False) -> Json:
        """The CronJob after a server-side apply.

        Raises:
            ConfigError: it is refused, in the server's words; a field that another manager owns included.
        """
        query = {"fieldValidation": "Strict", "fieldManager": _FIELD_MANAGER} | ({"dryRun": "All"} if dry_run else {})
        name = cronjob["metadata"]["name"]
        answer = self.api.send("PATCH", self._batch("cronjobs", name), query, cronjob, "application/apply-patch+yaml")
        if answer.status in (404, 409):
            raise answer.error()
        return answer.json()

    def get_cronjob(self, name: str) -> Json | None:
        """A CronJob, None when there is none."""
        answer = self.api.send("GET", self._batch("cronjobs", name))
        return None if answer.status == 404 else answer.json()

    def cronjobs(self, selector: str) -> list[Json]:
        """The CronJobs with these labels."""
        return self._items(self._batch("cronjobs"), {"labelSelector": selector})

    def delete_cronjob(self, name: str, uid: str) -> bool:
        """Deletes the CronJob with that very uid, and leaves its Jobs: a night that runs goes on. False when it has gone."""
        return self._delete("cronjobs", name, uid, "Orphan")

    # What else there is

    def may(self, verb: str, resource: str, group: str = "", subresource: str = "", namespaced: bool = True) -> bool:
        """Whether this user has a right here, by a SelfSubjectAccessReview."""
        asked = {"verb": verb, "resource": resource, "group": group, "subresource": subresource}
        spec = {"resourceAttributes": asked | ({"namespace": self.namespace} if namespaced else {})}
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        review = self.api.send("POST", path, body={"spec": spec}).json()
        return bool(review["status"].get("allowed"))

    def exists(self, path: str) -> bool:
        """Whether there is an object at an absolute path of the API."""
        return self.api.send("GET", path).status != 404

    def nodes(self) -> list[Json]:
        """The cluster's nodes."""
        return self._items("/api/v1/nodes", {})

    def quotas(self) -> list[Json]:
        """The namespace's ResourceQuotas."""
        return self._items(self._core("resourcequotas"), {})

    def version(self) -> str:
        """The API server's."""
        told: str = self.api.send("GET", "/version").json()["gitVersion"]
        return told

    def _items(self, path: str, query: Mapping[str, str]) -> list[Json]:
        return [item for page in self.api.pages(path, query) for item in page["items"] or ()]

    def _delete(self, resource: str, name: str, uid: str, propagation: str) -> bool:
        options = {"propagationPolicy": propagation, "preconditions": {"uid": uid}}
        return self.api.send("DELETE", self._batch(resource, name), body=options).status < 300

    def _check_pod_security(self, answer: Answer, job: Mapping[str, Any] | None = None, advice: str = "") -> None:
        """Takes a warning as the refusal that the Job's pods would get, and undoes the Job, where there is one."""
        if refused := [text for text in answer.warnings if _POD_SECURITY in text]:
            if job:
                self.delete_job(job["metadata"]["name"], job["metadata"]["uid"])
            raise ConfigError(
                f"the namespace {self.namespace} refuses such pods: {'; '.join(refused)}",
                f"Change the Job template, or ask whoever runs the cluster.{advice}",
            )

    def _batch(self, resource: str, name: str = "") -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/{resource}" + (f"/{name}" if name else "")

    def _core(self, resource: str, name: str = "") -> str:
        return f"/api/v1/namespaces/{self.namespace}/{resource}" + (f"/{name}" if name else "")


def _is_named_after(name: str, involved: Json) -> bool:
    """Whether an object is the one of that name, a night's Job, a pod of one of these, or Kueue's Workload of a Job."""
    if involved.get("kind") == "Workload":
        return str(involved["name"]).startswith(f"job-{name}-")
    return bool(re.fullmatch(rf"{re.escape(name)}{_NIGHT}{_POD}", involved["name"]))
