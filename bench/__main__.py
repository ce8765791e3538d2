"""`make bench`: measures, prints a table, and writes build/bench.json."""

import importlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import Figure

MODULES = ("startup", "launcher", "dataset", "checkpoints", "storage", "reference")
"""Modules of this package with a `figures()`, the quick ones first."""
REPORT = Path("build/bench.json")


def main(names: Sequence[str]) -> int:
    """Measures the modules named, or all. A goal that is missed is shown, and is no failure."""
    figures: list[Figure] = []
    for name in names or MODULES:
        figures += importlib.import_module(f"bench.{name}").figures()
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(json.dumps(figures, indent=2) + "\n")
    Console().print(table(figures))
    return 0


def table(figures: Iterable[Figure]) -> Table:
    """The figures as a person reads them."""
    drawn = Table("what", "ours", "theirs", "unit", "ratio", "goal", "holds")
    for figure in figures:
        drawn.add_row(
            figure["name"],
            f"{figure['ours']:,.3g}",
            f"{figure['theirs']:,.3g}",
            figure["unit"],
            f"{figure['ratio']:.3f}",
            figure["goal"],
            "yes" if figure["holds"] else "[red]no[/]",
        )
    return drawn


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
