"""What an attempt is given that nobody interrupts."""

from job.contract.errors import FencedError


def never_overtaken(by: FencedError) -> None:
    raise AssertionError(by)
