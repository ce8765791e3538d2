"""The built trainer as a hardened pod has it: no network, a read-only root, no capability, a uid that nobody knows.

`make test-image` runs it on the image that `make image` built, `make test-cluster` on the one that it builds;
FINETUNE_TEST_IMAGE_FLAGS passes more to `podman run` or `docker run`.
"""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.demo.server import s3_server
from job.contract.documents import Outcome, Result
from job.storage.opening import open_storage
from job.storage.s3_client import forget_client
from job.storage.transfer import upload_directory
from tests.tiny import make_tiny_model, sums, tiny_config

IMAGE = os.environ.get("FINETUNE_TEST_IMAGE", "")
pytestmark = pytest.mark.skipif(not IMAGE, reason="`make test-image` runs these, on a built image")

ENGINE = "podman" if shutil.which("podman") else "docker"
FLAGS = os.environ.get("FINETUNE_TEST_IMAGE_FLAGS", "").split()
if ENGINE == "podman":  # which asks for limits that a machine may not give, names the uid, and adds a writable /tmp
    FLAGS += ["--ulimit=nofile=4096:4096", "--ulimit=nproc=8192:8192", "--passwd=false", "--read-only-tmpfs=false"]
UNPRIVILEGED = ["--cap-drop=ALL", "--security-opt=no-new-privileges", "--shm-size=64m"]
HARDENED = ["--network=none", "--read-only", *UNPRIVILEGED, "--user=1234567:0"]
NAMES = ("CONFIG", "RUNS", "SCRATCH", "TERMINATION_LOG")
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


def told(config: str, runs: str) -> list[str]:
    """The job's variables."""
    values = (config, runs, "/scratch/work", "/scratch/termination-log")
    return [f"--env=FINETUNE_{name}={value}" for name, value in zip(NAMES, values, strict=True)]


def config(base: str, rows: str, **keys: object) -> str:
    made = tiny_config(Path("/any"), {"max_steps": 4}, **keys).model_dump(mode="json")
    return json.dumps({**made, "base_model": base, "dataset": {"train": rows}})


def test_it_finetunes(run: Run, scratch: Path, tmp_path: Path) -> None:
    """From a config on a read-only volume to GGUF, on the CPU."""
    inputs = tmp_path / "inputs"
    (inputs / "base").mkdir(parents=True)
    for file in make_tiny_model(inputs / "base").iterdir():
        file.chmod(0o644)
    (inputs / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums(48)))
    export = {"gguf": ["f16", "q4_k_m"], "lora_gguf": True}
    (inputs / "config.yaml").write_text(config("/inputs/base", "/inputs/rows.jsonl", export=export))

    done = run(flags=(f"--volume={inputs}:/inputs:ro", *told("/inputs/config.yaml", "/scratch/runs")))

    assert done.returncode == 0, done.stdout + done.stderr
    assert Outcome.model_validate_json((scratch / "termination-log").read_bytes()).code == 0
    [path] = (scratch / "runs" / "runs").glob("*/result.json")
    result = Result.model_validate_json(path.read_bytes())
    made = {Path(artifact.key).name for artifact in result.artifacts.all()}
    assert {"adapter_model.safetensors", "tiny.F16.gguf", "tiny.Q4_K_M.gguf"} <= made


@contextmanager
def network_to(*addresses: str) -> Iterator[str]:
    """A network namespace that reaches the first of some new addresses of this machine, and nothing else; its name."""
    name = f"ft-{os.getpid()}"
    inside = ["ip", "-n", name]
    commands = [
        ["ip", "netns", "add", name],
        ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name],
        *(["ip", "address", "add", f"{address}/32", "dev", name] for address in addresses),
        ["ip", "link", "set", name, "up"],
        ["ip", "route", "add", _POD, "dev", name],
        [*inside, "address", "add", f"{_POD}/32", "dev", "eth0"],
        [*inside, "link", "set", "eth0", "up"],
        [*inside, "link", "set", "lo", "up"],
        [*inside, "route", "add", f"{addresses[0]}/32", "dev", "eth0"],
    ]
    try:
        for command in commands:
            subprocess.run(command, check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)  # and the pair of devices with it


_STORE, _ELSEWHERE, _POD = "10.243.1.1", "10.243.2.1", "10.243.1.2"
_CONNECT = f"""
import socket, sys
for address in ("{_STORE}", "{_ELSEWHERE}"):
    try:
        socket.create_connection((address, int(sys.argv[1])), timeout=5).close()
        print("reached")
    except OSError:
        print("not reached")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace takes root")
@pytest.mark.skipif(ENGINE != "podman", reason="docker takes no network namespace")
@pytest.mark.parametrize("identity", [["--user=65532:65532"], ["--user=1234567:0", "--read-only"]])
def test_it_needs_no_network_but_its_stores_and_writes_to_scratch_alone(
    identity: list[str], tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under what k8s/base/network-policy.yaml promises at its narrowest, as the image's uid, which could write elsewhere,
    and as one that has no name on a root that cannot be written to."""
    name = f"finetune-test-{os.getpid()}"
    with network_to(_STORE, _ELSEWHERE) as network, s3_server(tmp_path / "s3", "demo", _STORE) as server:
        for variable, text in server.environment.items():
            monkeypatch.setenv(variable, text)
        forget_client()
        storage = open_storage("s3://demo")
        upload_directory(make_tiny_model(tmp_path / "base"), storage, "base/")
        storage.put("rows.jsonl", "".join(json.dumps(row) + "\n" for row in sums(48)).encode())
        wanted = config("s3://demo/base/", "s3://demo/rows.jsonl", export={"gguf": ["q4_k_m"]})
        storage.put("config.yaml", wanted.encode())

        flags = [*FLAGS, *UNPRIVILEGED, *identity, f"--network=ns:/run/netns/{network}"]
        variables = [f"--env={variable}={text}" for variable, text in server.environment.items()]
        variables += told("s3://demo/config.yaml", "s3://demo")
        volume = f"--volume={scratch}:/scratch"
        port = server.endpoint.rpartition(":")[2]
        looking = [ENGINE, "run", "--rm", *flags, "--entrypoint=python", IMAGE, "-c", _CONNECT, port]
        with socket.create_server((_ELSEWHERE, int(port))):
            assert subprocess.check_output(looking, text=True) == "reached\nnot reached\n"
        try:
            command = [ENGINE, "run", f"--name={name}", *flags, *variables, volume, IMAGE]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            written = subprocess.check_output([ENGINE, "diff", name], text=True).splitlines()
        finally:
            subprocess.run([ENGINE, "rm", "--force", name], check=True, capture_output=True)
        [stat] = [stat for stat in storage.list("runs/") if stat.key.endswith("/result.json")]
        found = storage.get(stat.key)
    forget_client()
    assert found
    made = Result.model_validate_json(found[0]).artifacts
    assert made.lora
    assert made.gguf
    assert [line for line in written if line.split()[1] not in _ENGINES_OWN] == []


_ENGINES_OWN = {"/etc", "/etc/mtab", "/run", "/run/.containerenv", "/run/secrets", "/scratch"}
"""What the engine itself puts there for its mounts."""


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


def test_its_layers_are_small() -> None:
    """Another version of our code pushes 5 MB at most, and all but the base and the packages of the lock is 300 MB."""
    command = [ENGINE, "history", "--no-trunc", "--format={{.Size}}|{{.CreatedBy}}", IMAGE]
    told = (line.split("|", 1) for line in subprocess.check_output(command, text=True).splitlines())
    layers = [(megabytes(size), made_by) for size, made_by in told]  # the newest first
    [ours] = [size for size, made_by in layers if "in /opt/finetune" in made_by]
    assert 0 < ours <= 5
    [first] = [place for place, (_, made_by) in enumerate(layers) if " gcc " in made_by]
    assert 0 < sum(size for size, made_by in layers[: first + 1] if "in /opt/venv" not in made_by) <= 300


def megabytes(size: str) -> float:
    """Of what `podman history` and `docker history` say, such as `2.1 MB` and `512kB`."""
    found = re.fullmatch(r"([\d.]+) ?(k|M|G|)B", size)
    assert found, size
    return float(found[1]) * {"": 1e-6, "k": 1e-3, "M": 1, "G": 1e3}[found[2]]


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
