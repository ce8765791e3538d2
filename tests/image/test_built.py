"""The built trainer as a hardened pod has it: no network, a read-only root, no capability, a uid that nobody knows.

`make test-image` runs it on the image that `make image` built; FINETUNE_TEST_IMAGE_FLAGS passes more to `podman run` or
`docker run`.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from job.contract.documents import Outcome, Result
from tests.tiny import make_tiny_model, sums, tiny_config

IMAGE = os.environ.get("FINETUNE_TEST_IMAGE", "")
pytestmark = pytest.mark.skipif(not IMAGE, reason="`make test-image` runs these, on a built image")

ENGINE = "podman" if shutil.which("podman") else "docker"
FLAGS = os.environ.get("FINETUNE_TEST_IMAGE_FLAGS", "").split()
HARDENED = ["--network=none", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=1234567:0"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    path.chmod(0o777)
    return path


@pytest.fixture
def run(scratch: Path) -> Run:
    def start(
        *words: str, entrypoint: str | None = None, flags: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        volume = f"--volume={scratch}:/scratch"
        instead = [] if entrypoint is None else [f"--entrypoint={entrypoint}"]
        command = [ENGINE, "run", "--rm", *FLAGS, *HARDENED, volume, *instead, *flags, IMAGE, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=800)

    return start


def test_it_finetunes(run: Run, scratch: Path, tmp_path: Path) -> None:
    """From a config on a read-only volume to GGUF, on the CPU."""
    inputs = tmp_path / "inputs"
    (inputs / "base").mkdir(parents=True)
    for file in make_tiny_model(inputs / "base").iterdir():
        file.chmod(0o644)
    (inputs / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums(48)))
    export = {"gguf": ["f16", "q4_k_m"], "lora_gguf": True}
    config = tiny_config(Path("/inputs/base"), {"max_steps": 4}, export=export).model_dump(mode="json")
    config["dataset"]["train"] = "/inputs/rows.jsonl"
    (inputs / "config.yaml").write_text(json.dumps(config))

    variables = ("FINETUNE_CONFIG=/inputs/config.yaml", "FINETUNE_RUNS=/scratch/runs", "FINETUNE_SCRATCH=/scratch/work")
    log = "FINETUNE_TERMINATION_LOG=/scratch/termination-log"
    flags = (f"--volume={inputs}:/inputs:ro", *(f"--env={each}" for each in (*variables, log)))
    done = run(flags=flags)

    assert done.returncode == 0, done.stdout + done.stderr
    assert Outcome.model_validate_json((scratch / "termination-log").read_bytes()).code == 0
    [path] = (scratch / "runs" / "runs").glob("*/result.json")
    result = Result.model_validate_json(path.read_bytes())
    made = {Path(artifact.key).name for artifact in result.artifacts.all()}
    assert {"adapter_model.safetensors", "tiny.F16.gguf", "tiny.Q4_K_M.gguf"} <= made


def test_bad_flags_end_it_as_the_table_says(run: Run) -> None:
    assert run("--no-such-flag").returncode == 64


def test_it_has_what_triton_compiles_with(run: Run) -> None:
    script = """
        set -e
        printf '#include <Python.h>\nint main(void) { return 0; }' >/scratch/a.c
        gcc -I "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')" /scratch/a.c -o /scratch/a && /scratch/a
        g++ --version >/scratch/version
        python -c 'import setuptools, triton, torch, llama_cpp; assert torch.version.cuda == "12.4"'
    """
    done = run("-c", script, entrypoint="/bin/sh")
    assert done.returncode == 0, done.stderr


def test_unsloths_gpu_path_can_be_imported(run: Run) -> None:
    """What it would import on a card, by the switch that Unsloth's own tests have for it."""
    variables = ("--env=UNSLOTH_ALLOW_CPU=1", "--env=CUDA_VISIBLE_DEVICES=", "--env=USER=any", "--env=LOGNAME=any")
    done = run("-c", "import unsloth", entrypoint="/opt/venv/bin/python", flags=variables)
    assert done.returncode == 0, done.stderr


def test_it_lacks_what_fetches_and_what_grants(run: Run) -> None:
    done = run("-c", "command -v git cmake sudo curl wget pip pip3 uv; echo looked", entrypoint="/bin/sh")
    assert done.stdout == "looked\n"
    script = "import importlib.util; print(importlib.util.find_spec('pip'))"
    assert run("-c", script, entrypoint="/opt/venv/bin/python").stdout == "None\n"


def test_every_module_of_ours_and_torch_is_compiled(run: Run) -> None:
    script = """
        find /opt/finetune /opt/venv/lib/python3.11/site-packages/torch/nn -name '*.py' | while read -r file; do
            [ -f "$(dirname "$file")/__pycache__/$(basename "$file" .py).cpython-311.pyc" ] || echo "$file"
        done
        echo looked
    """
    assert run("-c", script, entrypoint="/bin/sh").stdout == "looked\n"


def test_it_tells_what_is_in_it(run: Run) -> None:
    bom = json.loads(run("/usr/share/finetune/sbom.cdx.json", entrypoint="/bin/cat").stdout)
    versions = {each["name"]: each["version"] for each in bom["components"]}
    assert versions["torch"] == "2.6.0"
    assert {"unsloth", "unsloth_zoo", "llama_cpp_python", "boto3"} <= {name.replace("-", "_") for name in versions}
    licences = run("/usr/share/finetune/licences.txt", entrypoint="/bin/cat").stdout
    assert "llama.cpp" in licences
    assert "unsloth/dataset_num_proc.py" in licences
    assert "unsloth/models/_uma_safetensors.py" in licences
    assert "/studio/" not in licences
