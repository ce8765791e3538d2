from pathlib import Path

import pytest

from job.environment import environment

_HOME, _REPORT, _LLAMA = Path("/scratch/home"), Path("/scratch/report"), Path("/opt/llama.cpp")


def of(gpus: int = 1, cpus: int = 4, trackers: tuple[str, ...] = (), **inherited: str) -> dict[str, str]:
    return environment(_HOME, _REPORT, _LLAMA, gpus, cpus, trackers, inherited)


def test_no_credential_of_the_store_reaches_a_child() -> None:
    variables = of(AWS_SECRET_ACCESS_KEY="s", AWS_SESSION_TOKEN="t", HF_TOKEN="h", WANDB_API_KEY="w", PATH="/bin")
    assert variables["PATH"] == "/bin"
    assert not {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY"} & variables.keys()


def test_a_tracker_gets_its_own_variables_once_it_is_asked_for() -> None:
    assert of(trackers=("wandb",), WANDB_API_KEY="w")["WANDB_API_KEY"] == "w"


def test_a_gpu_run_never_falls_back_to_the_cpu_and_a_cpu_run_says_so() -> None:
    gpu, cpu = of(gpus=1), of(gpus=0)
    assert gpu["UNSLOTH_DISABLE_CPU_FALLBACK"] == "1"
    assert "UNSLOTH_FORCE_CPU" not in gpu
    assert (cpu["UNSLOTH_FORCE_CPU"], cpu["UNSLOTH_CPU_BF16"]) == ("1", "0")
    assert cpu["TORCHINDUCTOR_COMPILE_THREADS"] == "1", "else each import starts processes"


@pytest.mark.parametrize(("gpus", "cpus", "threads"), [(0, 4, "4"), (1, 4, "4"), (2, 4, "2"), (8, 4, "1")])
def test_each_process_has_threads_for_its_share_of_the_processors(gpus: int, cpus: int, threads: str) -> None:
    assert of(gpus, cpus)["OMP_NUM_THREADS"] == threads
    assert of(gpus, cpus, OMP_NUM_THREADS="3")["OMP_NUM_THREADS"] == "3", "whoever sets it knows better"


def test_every_cache_lies_on_scratch() -> None:
    written = [text for name, text in of().items() if name.endswith(("_HOME", "_DIR", "_LOCATION", "_CACHE", "HOME"))]
    assert len(written) >= 9
    assert all(text.startswith(("/scratch/", "/opt/llama.cpp")) for text in written)
