"""The base of every document: frozen, strict, no unknown keys; and its canonical bytes."""

import hashlib
import json

from pydantic import BaseModel, ConfigDict


class Document(BaseModel):
    """A frozen pydantic model that refuses unknown keys and takes its field descriptions from the docstrings below them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


def canonical_bytes(document: Document) -> bytes:
    """The one byte form of a document: JSON, keys sorted, no white space, UTF-8. Hashes are taken over this."""
    return json.dumps(
        document.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def sha256_hex(body: bytes) -> str:
    """The SHA-256 of ``body`` in 64 hex digits."""
    return hashlib.sha256(body).hexdigest()
