"""Blanks the values of secret-looking environment variables wherever they would be told."""

import os
from collections.abc import Mapping

_SECRET_NAMES = ("SECRET", "TOKEN", "PASSWORD", "API_KEY")
_SHORTEST = 8  # characters; blanking anything shorter would blank ordinary words


def secrets_of(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The values that must never be told."""
    return [
        value
        for name, value in environment.items()
        if len(value) >= _SHORTEST and any(word in name.upper() for word in _SECRET_NAMES)
    ]


def blanked(text: str, secrets: list[str]) -> str:
    """The text with every secret replaced by `***`."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
