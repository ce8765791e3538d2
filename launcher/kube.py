"""The API server: one adapter over the official client, in plain JSON, with our errors and a timeout on every call."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from job.contract.errors import ConfigError, JobError, PermissionDenied, UnavailableError, UsageError

Json = dict[str, Any]

TIMEOUT = (5, 60)
"""Seconds to connect and to read; the client's own default is to wait for ever."""
_PAGE = 500
_POD_SECURITY = "would violate PodSecurity"
# The API server is there, and asks to come again.
_BUSY = frozenset({429, 500, 502, 503, 504})


class Lost(UnavailableError):
    """A request whose answer did not come: it may have been carried out."""


@dataclass(frozen=True)
class Cluster:
    """One namespace of a cluster."""

    api: client.ApiClient
    namespace: str

    def create_job(self, job: Json, dry_run: bool = False) -> Json | None:
        """The Job as the API server took it; None when the name is taken.

        Raises:
            ConfigError: it is refused, in the server's words, or PodSecurity would refuse its pods.
            Lost: no answer came.
        """
        query = {"fieldValidation": "Strict", "fieldManager": "finetune-launcher"} | (
            {"dryRun": "All"} if dry_run else {}
        )
        answer = self._send("POST", self._path("jobs"), query, job)
        if answer.status == 409:
            return None
        if answer.status == 404:  # the namespace
            raise answer.error(self.namespace)
        made = answer.json()
        if refused := [text for text in answer.warnings if _POD_SECURITY in text]:
            if not dry_run:
                self.delete_job(made["metadata"]["name"], made["metadata"]["uid"])
            raise ConfigError(f"the namespace {self.namespace} refuses such pods: {'; '.join(refused)}", _TEMPLATE)
        return made

    def get_job(self, name: str) -> Json | None:
        """A Job, None when there is none."""
        answer = self._send("GET", self._path("jobs", name))
        return None if answer.status == 404 else answer.json()

    def delete_job(self, name: str, uid: str) -> bool:
        """Deletes the Job with that very uid, its pods first; False when it is not there any more."""
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        return self._send("DELETE", self._path("jobs", name), body=options).status < 300

    def jobs(self, selector: str) -> Iterator[Json]:
        """The Jobs with these labels, page by page."""
        return self._pages(self._path("jobs"), selector)

    def pods(self, job_uid: str) -> list[Json]:
        """The pods of a Job."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return list(self._pages(path, f"batch.kubernetes.io/controller-uid={job_uid}"))

    def _path(self, resource: str, name: str = "") -> str:
        return f"/apis/batch/v1/namespaces/{self.namespace}/{resource}" + (f"/{name}" if name else "")

    def _pages(self, path: str, selector: str) -> Iterator[Json]:
        query = {"labelSelector": selector, "limit": str(_PAGE)}
        while True:
            page = self._send("GET", path, query).json()
            yield from page["items"]
            if not (token := page["metadata"].get("continue")):
                return
            query["continue"] = token

    def _send(
        self, method: str, path: str, query: Mapping[str, str] = MappingProxyType({}), body: Json | None = None
    ) -> "_Answer":
        """One request. 404 and 409 are answers; every other refusal is an error of ours.

        In JSON, not by the client's typed methods: they refuse what the server of another version may know, and what it
        does not know the server itself names better.
        """
        request = self.api.param_serialize(
            method=method,
            resource_path=path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self.api.call_api(*request, _request_timeout=TIMEOUT)
            response.read()
        except (urllib3.exceptions.HTTPError, ApiException) as error:
            raise Lost(f"the API server does not answer: {error}", "Check the network, or try again later.") from error
        answer = _Answer(response.status, response.data, response.response.headers.getlist("Warning"))
        if answer.status >= 300 and answer.status not in (404, 409):
            raise answer.error(self.namespace)
        return answer


@dataclass(frozen=True)
class _Answer:
    """What the API server said."""

    status: int
    body: bytes
    warnings: list[str]

    def json(self) -> Json:
        """The object."""
        found: Json = json.loads(self.body)
        return found

    def error(self, namespace: str) -> JobError:
        """A refusal as ours, in the server's own words."""
        try:
            said = self.json()["message"]
        except (ValueError, KeyError):
            said = self.body.decode("utf-8", "replace")[:500]
        if self.status == 401:
            return PermissionDenied(f"the API server does not know you: {said}", "Log in to the cluster again.")
        if self.status == 403 and _NO_RIGHT.search(said):
            return PermissionDenied(f"the API server: {said}", "Ask for the role finetune-launcher.")
        if self.status in _BUSY:
            return Lost(f"the API server answers {self.status}: {said}", "Try again later.")
        return ConfigError(f"refused in namespace {namespace}: {said}", _TEMPLATE)


_NO_RIGHT = re.compile(r"is forbidden: User .* cannot ")  # not a quota or a policy, which are 403 as well
_TEMPLATE = "Change the Job template, or ask whoever runs the cluster."


def connect(kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None) -> Cluster:
    """The cluster that kubectl would reach: in a pod its own, else by kubeconfig.

    Raises:
        UsageError: there is no usable kubeconfig.
    """
    settings = client.Configuration()
    settings.client_go_retries = True  # of reads: Retry-After is obeyed
    try:
        if kubeconfig is None and context is None:
            try:
                config.load_incluster_config(client_configuration=settings)
                own = _in_cluster_namespace()
            except ConfigException:
                own = _load(settings, None, None)
        else:
            own = _load(settings, kubeconfig, context)
    except (ConfigException, OSError) as error:
        raise UsageError(f"no cluster: {error}", "Give --kubeconfig or --context, or set KUBECONFIG.") from error
    return Cluster(client.ApiClient(settings), namespace or own)


def _load(settings: client.Configuration, kubeconfig: str | None, context: str | None) -> str:
    config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=settings)
    contexts, active = config.list_kube_config_contexts(config_file=kubeconfig)
    chosen = next((each for each in contexts if each["name"] == context), active)
    namespace: str = chosen["context"].get("namespace", "default")
    return namespace


def _in_cluster_namespace() -> str:
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()
