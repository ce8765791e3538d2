"""The packages that decide what training computes, and their versions, known without importing any of them."""

from importlib.metadata import PackageNotFoundError, version

STACK = ("torch", "unsloth", "unsloth_zoo", "transformers", "trl", "peft", "bitsandbytes", "datasets")


def stack_versions() -> dict[str, str]:
    """The versions of the training stack's packages that are installed."""
    return {name: found for name in STACK if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
