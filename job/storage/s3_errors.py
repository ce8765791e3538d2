"""What a failed request to S3 means: one table from its codes to our kinds of error."""

import re

from botocore import exceptions as botocore_errors
from urllib3.exceptions import HTTPError, LocationParseError

from job.contract.errors import (
    ConfigError,
    DataError,
    JobError,
    NoInputError,
    PermissionDenied,
    UnavailableError,
)


class MissingObject(NoInputError):
    """There is no such object."""


class ChangedObject(DataError):
    """A condition on the object's tag does not hold."""


class StaleCredentials(PermissionDenied):
    """Credentials that may have been replaced by now: worth one more try with fresh ones."""


_ARCHIVED = "Restore it from the archive first, or name another."
_REFUSED = "Give this identity the right to do that (s3:GetObject, s3:PutObject, s3:ListBucket)."
_CREDENTIALS = (
    "Check the credentials that are given here: AWS_* variables, a profile, a web identity or a pod identity."
)
_KMS = "Give this identity kms:Decrypt and kms:GenerateDataKey on the bucket's key, and see that the key is enabled."
_LATER = "Check AWS_ENDPOINT_URL_S3 and the network, then try again."
_REGION = "Set AWS_REGION to the bucket's region."
_STORE = "Use a store that can do it, or the settings in the README that do without (FINETUNE_S3_CHECKSUM)."
_CLOCK = "Set the machine's clock."

_BY_CODE: dict[str, tuple[type[JobError], str]] = {
    "NoSuchBucket": (NoInputError, "Create the bucket, or correct the URI."),
    "NoSuchKey": (MissingObject, "Check the URI."),
    "NoSuchVersion": (MissingObject, "That version is gone. Start a fresh run with --again."),
    "NoSuchUpload": (MissingObject, "A lifecycle rule may have ended the upload."),
    "InvalidObjectState": (NoInputError, _ARCHIVED),
    "PreconditionFailed": (ChangedObject, "Let nothing replace it during a run. Start a fresh run with --again."),
    "AccessDenied": (PermissionDenied, _REFUSED),
    "AccountProblem": (PermissionDenied, _REFUSED),
    "AllAccessDisabled": (PermissionDenied, _REFUSED),
    "SignatureDoesNotMatch": (PermissionDenied, _CREDENTIALS),
    "InvalidAccessKeyId": (StaleCredentials, _CREDENTIALS),
    "InvalidToken": (StaleCredentials, _CREDENTIALS),
    "TokenRefreshRequired": (StaleCredentials, _CREDENTIALS),
    "ExpiredToken": (StaleCredentials, _CREDENTIALS),
    # A HEAD's answer has no body: an expired token is then a bare 400.
    "400": (StaleCredentials, _CREDENTIALS),
    "RequestTimeTooSkewed": (ConfigError, _CLOCK),
    "PermanentRedirect": (ConfigError, _REGION),
    "AuthorizationHeaderMalformed": (ConfigError, _REGION),
    "IllegalLocationConstraintException": (ConfigError, _REGION),
    "InvalidBucketName": (ConfigError, "Correct the bucket's name."),
    # Damaged on its way: the store threw it away, and the next try sends it again.
    "BadDigest": (UnavailableError, _LATER),
    "InvalidDigest": (UnavailableError, _LATER),
    "XAmzContentSHA256Mismatch": (UnavailableError, _LATER),
    "IncompleteBody": (UnavailableError, _LATER),
    # Another conditional write to the same key is under way.
    "ConditionalRequestConflict": (UnavailableError, _LATER),
    "OperationAborted": (UnavailableError, _LATER),
    "RequestTimeout": (UnavailableError, _LATER),
    "SlowDown": (UnavailableError, _LATER),
    "Throttling": (UnavailableError, _LATER),
    "ThrottlingException": (UnavailableError, _LATER),
    "RequestLimitExceeded": (UnavailableError, _LATER),
    "NotImplemented": (ConfigError, _STORE),
}

_BY_STATUS: dict[int, tuple[type[JobError], str]] = {
    301: (ConfigError, _REGION),
    307: (ConfigError, _REGION),
    401: (PermissionDenied, _CREDENTIALS),
    403: (PermissionDenied, _REFUSED),
    404: (MissingObject, "Check the URI."),
    409: (UnavailableError, _LATER),
    412: (ChangedObject, "Let nothing replace it during a run. Start a fresh run with --again."),
    429: (UnavailableError, _LATER),
}

# The first row whose class fits holds.
_BY_CLASS: tuple[tuple[type[Exception], type[JobError], str], ...] = (
    (botocore_errors.NoCredentialsError, PermissionDenied, _CREDENTIALS),
    (botocore_errors.PartialCredentialsError, PermissionDenied, _CREDENTIALS),
    (botocore_errors.CredentialRetrievalError, PermissionDenied, _CREDENTIALS),
    (botocore_errors.TokenRetrievalError, PermissionDenied, _CREDENTIALS),
    (botocore_errors.UnauthorizedSSOTokenError, PermissionDenied, _CREDENTIALS),
    (botocore_errors.ConnectionError, UnavailableError, _LATER),
    (botocore_errors.HTTPClientError, UnavailableError, _LATER),  # timeouts, broken connections
    (botocore_errors.ConnectionError, UnavailableError, _LATER),  # no such host, nobody listening
    (HTTPError, UnavailableError, _LATER),  # the same while an answer is read
    (botocore_errors.IncompleteReadError, UnavailableError, _LATER),
    (botocore_errors.FlexibleChecksumError, UnavailableError, _LATER),
    (botocore_errors.BotoCoreError, ConfigError, "Check the AWS_* variables and the URI."),
)

# What OpenSSL says of a connection that no second try will mend.
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL")


def meaning(error: Exception, uri: str) -> JobError:
    """The `JobError` that a failed request about `uri` means."""
    if isinstance(error, botocore_errors.ClientError):
        return _meaning_of_answer(error, uri)
    if isinstance(error, botocore_errors.SSLError) and any(word in str(error) for word in _UNTRUSTED):
        return ConfigError(
            f"{uri}: {_said(error)}", "Set AWS_CA_BUNDLE to the store's CA, or correct AWS_ENDPOINT_URL_S3."
        )
    for known, kind, resolution in _BY_CLASS:
        if isinstance(error, known):
            return kind(f"{uri}: {_said(error)}", resolution)
    raise error


def _said(error: Exception) -> str:
    """Its words, without the name and password that an endpoint's URL may carry."""
    if isinstance(error, botocore_errors.HTTPClientError) and isinstance(error.kwargs.get("error"), LocationParseError):
        return "the URL of the store or of a proxy cannot be read"  # it stands in the words, whole
    return re.sub(r"://\S+@", "://***@", str(error))


def _meaning_of_answer(error: botocore_errors.ClientError, uri: str) -> JobError:
    code = error.response.get("Error", {}).get("Code", "")
    text = error.response.get("Error", {}).get("Message") or ""  # None for an empty element
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    message = f"{uri}: {text or 'refused'} ({code or status})"
    if code.startswith("KMS.") or (status == 403 and "kms" in text.lower()):
        return PermissionDenied(message, _KMS)
    kind, resolution = (
        _BY_CODE.get(code)
        or _BY_STATUS.get(status)
        or ((UnavailableError, _LATER) if status >= 500 else (ConfigError, _STORE))
    )
    return kind(message, resolution)
