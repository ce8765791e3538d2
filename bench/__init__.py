"""What is measured here is measured against something that a person could use instead."""

from typing import TypedDict


class Figure(TypedDict):
    """One line of the table."""

    name: str
    ours: float
    theirs: float
    ratio: float
    goal: str
    holds: bool
    unit: str


def at_most(name: str, ours: float, theirs: float, goal: float, unit: str = "s") -> Figure:
    """A figure that holds when `ours / theirs` is no higher than the goal."""
    ratio = ours / theirs
    return Figure(name=name, ours=ours, theirs=theirs, ratio=ratio, goal=f"<= {goal:g}", holds=ratio <= goal, unit=unit)


def at_least(name: str, ours: float, theirs: float, goal: float, unit: str = "MB/s") -> Figure:
    """A figure that holds when `ours / theirs` is no lower than the goal."""
    ratio = ours / theirs
    return Figure(name=name, ours=ours, theirs=theirs, ratio=ratio, goal=f">= {goal:g}", holds=ratio >= goal, unit=unit)
