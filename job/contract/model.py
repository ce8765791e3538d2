"""The base of every document: frozen, strict, no unknown keys; its canonical bytes, and reading them back."""

import hashlib
import json
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from job.contract.errors import DataError


class Document(BaseModel):
    """A frozen pydantic model that refuses unknown keys and takes its field descriptions from the docstrings below them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


D = TypeVar("D", bound=Document)


def canonical_bytes(document: Document) -> bytes:
    """The one byte form of a document: JSON, keys sorted, no white space, UTF-8. Hashes are taken over this."""
    return json.dumps(
        document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def read_document(kind: type[D], body: bytes, where: str) -> D:
    """A document of the store.

    Raises:
        DataError: when it is none, or of a newer schema.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise DataError(
            f"{where} is not a {kind.__name__} that this version reads: {error.errors(include_url=False)[0]['msg']}",
            "It was written by another version of this package, or by hand.",
        ) from error


def sha256_hex(body: bytes) -> str:
    """The SHA-256 of ``body`` in 64 hex digits."""
    return hashlib.sha256(body).hexdigest()


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """What differs between two trees of JSON, each as `dotted.path was … and is …`."""
    old, new = _flat("", before), _flat("", now)
    paths = sorted({path for path in old.keys() | new.keys() if old.get(path) != new.get(path)})
    return [f"{path} was {old.get(path)!r} and is {new.get(path)!r}" for path in paths]


def _flat(path: str, value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        return {path: value}
    return {
        key: item for name, inner in value.items() for key, item in _flat(f"{path}.{name}".lstrip("."), inner).items()
    }
