"""The API server: kubeconfig or in-cluster to an `Api` that speaks plain JSON, with our errors and a timeout on every call.

In JSON, not by the official client's typed methods: they refuse what the server of another version may know, and what it
does not know the server itself names better. The client gives what is hard: credentials, TLS, proxies, retries of reads.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException

from job.contract.errors import ConfigError, JobError, PermissionDenied, UnavailableError, UsageError

Json = dict[str, Any]

CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
"""The client's own default is to wait for ever."""
_PAGE = 500
# The API server is there, and asks to come again.
_BUSY = frozenset({429, 500, 502, 503, 504})
_NO_RIGHT = re.compile(r"is forbidden: User .* cannot ")  # not a quota or a policy, which are 403 as well
_TEMPLATE = "Change the Job template, or ask whoever runs the cluster."
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Lost(UnavailableError):
    """A request whose answer did not come: it may have been carried out."""


class Gone(JobError):
    """A watch's place in history is no longer kept (410): list again."""


@dataclass(frozen=True)
class Answer:
    """What the API server said."""

    status: int
    body: bytes
    warnings: tuple[str, ...] = ()

    def json(self) -> Json:
        """The object."""
        found: Json = json.loads(self.body)
        return found

    def error(self) -> JobError:
        """A refusal as ours, in the server's own words."""
        try:
            said = self.json()["message"]
        except (ValueError, KeyError):
            said = self.body.decode("utf-8", "replace")[:500]
        if self.status == 401:
            return PermissionDenied(f"the API server does not know you: {said}", "Log in to the cluster again.")
        if self.status == 403 and _NO_RIGHT.search(said):
            return PermissionDenied(f"the API server: {said}", "Ask for the role finetune-launcher.")
        if self.status == 410:
            return Gone(said)
        if self.status in _BUSY:
            return Lost(f"the API server answers {self.status}: {said}", "Try again later.")
        return ConfigError(f"the API server refuses it: {said}", _TEMPLATE)


class Clock:
    """The API server's, as it dates its answers; this machine's until one has come."""

    def __init__(self) -> None:
        self._told = datetime.now(UTC), time.monotonic()

    def hear(self, date: str | None) -> None:
        """Sets it by an answer's Date, if that has one."""
        if date:
            self._told = parsedate_to_datetime(date), time.monotonic()

    def now(self) -> datetime:
        """Its time, up to a second late: a Date has no fractions."""
        date, heard = self._told
        return date + timedelta(seconds=time.monotonic() - heard)


@dataclass(frozen=True)
class Api:
    """One API server, as one user."""

    client: client.ApiClient
    clock: Clock = field(default_factory=Clock)

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] = _NOTHING,
        body: Json | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Answer:
        """One request. 404 and 409 are answers; every other refusal is an error of ours.

        Raises:
            Lost: no answer came, or the server asks to come again.
            PermissionDenied: this user may not.
            ConfigError: it is refused, in the server's words.
        """
        try:
            response = self._open(method, path, query, body, content_type, accept, READ_SECONDS)
            response.read()
        except (urllib3.exceptions.HTTPError, ApiException) as error:
            raise self._lost(error) from error
        warnings = map(_text_of, response.response.headers.getlist("Warning"))
        answer = Answer(response.status, response.data, tuple(warnings))
        if answer.status >= 300 and answer.status not in (404, 409):
            raise answer.error()
        return answer

    def pages(self, path: str, query: Mapping[str, str] = _NOTHING, accept: str = "application/json") -> Iterator[Json]:
        """The pages of a list, each with its `items` and `metadata`. A path that is not served has none."""
        asked = {**query, "limit": str(_PAGE)}
        while True:
            answer = self.send("GET", path, asked, accept=accept)
            if answer.status == 404:
                return
            page = answer.json()
            yield page
            if not (token := page["metadata"].get("continue")):
                return
            asked["continue"] = token

    def lines(self, path: str, query: Mapping[str, str], silence_seconds: float) -> Iterator[bytes]:
        """The lines of an answer that goes on, each without its end, as they come.

        Args:
            path: what is followed.
            query: of the request.
            silence_seconds: after so long without a byte the connection counts as lost.

        Raises:
            Lost: the connection was cut or fell silent.
            JobError: the server refuses it; `Answer.error` of its status, 404 included.
        """
        try:
            response = self._open("GET", path, query, None, "application/json", "*/*", silence_seconds)
            with closing(response.response) as stream:
                if response.status >= 300:
                    raise Answer(response.status, stream.data).error()
                rest = b""
                for chunk in stream.stream(65536, decode_content=True):
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from whole
                if rest:
                    yield rest
        except (urllib3.exceptions.HTTPError, ApiException) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> Lost:
        """The other connections to the server may be as dead: none of them is used again."""
        self.client.rest_client.pool_manager.clear()
        return Lost(f"the API server does not answer: {error}", "Check the network, or try again later.")

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Json | None,
        content_type: str,
        accept: str,
        read_seconds: float,
    ) -> Any:
        request = self.client.param_serialize(
            method=method,
            resource_path=path,
            query_params=list(query.items()),
            header_params={"Accept": accept, "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self.client.call_api(*request, _request_timeout=(CONNECT_SECONDS, read_seconds))
        self.clock.hear(response.response.headers.get("Date"))
        return response


def _text_of(warning: str) -> str:
    """What a warning header says: `299 - "text"`, in which quotes are escaped."""
    found = re.fullmatch(r'\d+ \S+ "(.*)"', warning, re.DOTALL)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else warning


def connect(kubeconfig: str | None = None, context: str | None = None, user: str | None = None) -> tuple[Api, str]:
    """The API server that kubectl would reach, in a pod its own, else by kubeconfig; and the namespace named there.

    Args:
        kubeconfig: a file; None for KUBECONFIG or the usual place.
        context: of that file; None for its current one.
        user: whom to impersonate, as kubectl's --as.

    Raises:
        UsageError: there is no usable kubeconfig.
    """
    settings = client.Configuration()
    settings.client_go_retries = True  # of reads: Retry-After is obeyed
    settings.retries = urllib3.Retry(connect=2, read=1, other=0, redirect=0)  # its default asks a silent server 4 times
    settings.keep_alive = True
    try:
        if kubeconfig is None and context is None:
            try:
                config.load_incluster_config(client_configuration=settings)
                namespace = _in_cluster_namespace()
            except ConfigException:
                namespace = _load(settings, None, None)
        else:
            namespace = _load(settings, kubeconfig, context)
    except (
        ConfigException,
        OSError,
        TypeError,
        AttributeError,
        yaml.YAMLError,
    ) as error:  # as a file that is none has it
        path = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
        raise UsageError(
            f"no cluster: {path}: {error}", "Give --kubeconfig or --context, or set KUBECONFIG."
        ) from error
    try:
        caller = client.ApiClient(settings)
    except (urllib3.exceptions.HTTPError, ImportError):  # not in its words, which hold the proxy's password
        raise UsageError(
            "the proxy that HTTPS_PROXY, HTTP_PROXY or the kubeconfig names cannot be used",
            "Write http://[user:password@]host:port, special characters as %40.",
        ) from None
    if user:
        caller.set_default_header("Impersonate-User", user)
    return Api(caller), namespace


def _load(settings: client.Configuration, kubeconfig: str | None, context: str | None) -> str:
    config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=settings)
    contexts, active = config.list_kube_config_contexts(config_file=kubeconfig)
    chosen = next((each for each in contexts if each["name"] == context), active)
    namespace: str = chosen["context"].get("namespace", "default")
    return namespace


def _in_cluster_namespace() -> str:
    return Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip()
