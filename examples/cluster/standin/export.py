"""The export child's stand-in: a file of each name that the config asks for. `job/export.py` in the stand-in image."""

import sys
from collections.abc import Sequence
from pathlib import Path

from job.contract.events import Exported, Exporting
from job.contract.plan import Plan
from job.telling import Teller, run_child


def export(plan: Plan, teller: Teller) -> None:
    """Small files in the place of GGUFs."""
    name, asked = plan.recipe.name, plan.recipe.export
    files = [f"{name}.{quantization.upper()}.gguf" for quantization in asked.gguf]
    files += [f"{name}-lora.F16.gguf"] if asked.lora_gguf else []
    Path(plan.gguf).mkdir(parents=True)
    for step, file in enumerate(files, 1):
        teller.tell(Exporting(what=file, step=step, of=len(files)))
        path = Path(plan.gguf) / file
        path.write_bytes(b"GGUF" + file.encode() * 1000)
        teller.tell(Exported(kind="gguf", file=file, size=path.stat().st_size))
    (Path(plan.gguf) / "Modelfile").write_text(f"FROM ./{files[0]}\n")


def rehearse(plan: Plan, teller: Teller) -> None:
    """Nothing can go wrong."""


def main(argv: Sequence[str]) -> int:
    """The child's entry."""
    if argv[0] == "--check":
        return run_child(rehearse, argv[1:])
    return run_child(export, argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
