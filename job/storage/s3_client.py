"""The connection to S3: one client, our settings, and requests that are tried again for as long as the budget lasts."""

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential
from urllib3.exceptions import HTTPError

from job.contract.errors import ConfigError, UnavailableError, UsageError
from job.storage.checksums import Checksum, chosen
from job.storage.s3_errors import StaleCredentials, meaning

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Answer = TypeVar("Answer")
Arguments = dict[str, Any]
"""Keyword arguments of a request."""

# Reference: AWS SDKs' `standard` retry mode; 8 tries within one request take about half a minute.
_ATTEMPTS = 8
_HURRIED_ATTEMPTS = 2
_HURRIED_SECONDS = 60
_BUDGET_SECONDS = 1800.0
_LONGEST_PAUSE_SECONDS = 30.0
_READ_SECONDS = 60.0
_MOST_CONNECTIONS = 32
_making = threading.Lock()


@dataclass(frozen=True)
class S3Settings:
    """How we talk to a store, beyond what the standard AWS variables say."""

    budget_seconds: float
    """For how long one request is tried again while the store does not answer."""
    read_seconds: float
    """For how long an answer may stand still before its connection counts as hung."""
    checksum: Checksum
    """What each upload carries and the store confirms."""

    @classmethod
    def from_environment(cls, budget_seconds: float | None = None) -> "S3Settings":
        """FINETUNE_S3_BUDGET_SECONDS (less where the caller is in a hurry), and what else FINETUNE_S3_* say.

        Raises:
            UsageError: for values that make no sense.
        """
        budget = min(_number("FINETUNE_S3_BUDGET_SECONDS", _BUDGET_SECONDS), budget_seconds or math.inf)
        default = "none" if os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION") == "when_required" else "CRC64NVME"
        return cls(
            budget,
            min(_number("FINETUNE_S3_READ_SECONDS", _READ_SECONDS), budget),
            chosen(os.environ.get("FINETUNE_S3_CHECKSUM", default)),
        )

    @property
    def client(self) -> "S3Client":
        """The process's client."""
        attempts = int(_number("AWS_MAX_ATTEMPTS", _ATTEMPTS))
        with _making:
            if self.budget_seconds < _HURRIED_SECONDS:
                attempts = min(attempts, _HURRIED_ATTEMPTS)
            return _client(attempts, self.read_seconds)

    def request(self, uri: str, ask: "Callable[[S3Client], Answer]") -> Answer:
        """The answer to one request about `uri`, asked again while the store is unavailable and the budget lasts.

        Raises:
            JobError: of the kind that s3_errors.py's table gives.
        """

        def once() -> Answer:
            try:
                return _asked(self.client, uri, ask)
            except StaleCredentials:
                forget_client()  # a new one reads the credentials anew
                return _asked(self.client, uri, ask)

        return Retrying(
            retry=retry_if_exception_type(UnavailableError),
            stop=stop_after_delay(self.budget_seconds),
            wait=wait_random_exponential(max=min(_LONGEST_PAUSE_SECONDS, self.budget_seconds / 4)),
            before_sleep=_tell,
            reraise=True,
        )(once)


def _number(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not number > 0:
        raise UsageError(f"{name}={text} is not a number above 0")
    return number


def forget_client() -> None:
    """Let the next request make a new client, from the environment and credentials as they are then."""
    _client.cache_clear()


@cache
def _client(attempts: int, read_seconds: float) -> "S3Client":
    config = Config(
        connect_timeout=5,  # also of each 128 KiB that go up
        read_timeout=read_seconds,
        tcp_keepalive=True,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=_MOST_CONNECTIONS,
        # Our checksums are computed before a request, so botocore has none to add.
        request_checksum_calculation="when_required",
    )
    try:
        return Session().client("s3", config=config)
    except BotoCoreError as error:
        raise meaning(error, "S3") from error
    except ValueError as error:  # botocore's words have the whole of it, and so a password that is in it
        raise ConfigError("S3: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL is no URL", "Correct it.") from error


def _asked(client: "S3Client", uri: str, ask: "Callable[[S3Client], Answer]") -> Answer:
    try:
        return ask(client)
    except (ClientError, BotoCoreError, HTTPError) as error:
        raise meaning(error, uri) from error


def _tell(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    structlog.get_logger().warning(
        "the store does not answer, asking again", attempt=state.attempt_number, error=str(error)
    )
