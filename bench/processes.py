"""Processes of which time or memory is measured."""

import os
from pathlib import Path

PEAK_KIB = r'int(re.search(r"VmHWM:\s*(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])'
"""Python, with pathlib and re, for the most memory that its process has had.

ru_maxrss would not do: it begins with that of the process's parent.
"""


def compiled_once(bytecode: Path) -> dict[str, str]:
    """Variables with which a start finds compiled what an earlier one imported, on whatever machine.

    Args:
        bytecode: a directory for it.
    """
    inherited = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {"PYTHONPYCACHEPREFIX": str(bytecode)}
