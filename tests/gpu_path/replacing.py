"""Patches that an upgrade of what they patch cannot make silent."""

from typing import Any


def replace(owner: Any, name: str, value: object) -> Any:
    """Puts `value` in the place of an attribute that must be there.

    Returns:
        What was there.

    Raises:
        AttributeError: with its full name.
    """
    if not hasattr(owner, name):
        raise AttributeError(f"{getattr(owner, '__name__', owner)}.{name} is no more: its patch needs a new home")
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before
