"""Python runs this at its start wherever this folder is on PYTHONPATH: the supervisor's children are then the stand-ins."""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path

_STANDINS = Path(__file__).parents[3] / "examples" / "cluster" / "standin"


class _StandIns(MetaPathFinder):
    """`job.train` and `job.export` as the stand-in image has them."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name not in ("job.train", "job.export"):
            return None
        return spec_from_file_location(name, _STANDINS / f"{name.removeprefix('job.')}.py")


sys.meta_path.insert(0, _StandIns())
