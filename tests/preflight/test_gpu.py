"""Each card that NVML may tell of: what a run on it is told, through NVIDIA's own binding and a driver's stand-in."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from job.contract.errors import DeviceError
from job.contract.exits import Exit
from job.preflight import check_device
from tests.preflight.cards import (
    A10,
    A100_40,
    A100_80,
    B200,
    H100,
    H100_1G,
    H100_3G,
    H200,
    H200_1G,
    L4,
    P100,
    RTX_5090,
    T4,
    V100,
    Card,
)

ASK = """
import sys
from job.contract.errors import JobError
from job.preflight import check_device, check_dtype, check_gpu_memory
gpus, gpu_memory_gib, dtype = sys.argv[1:]
try:
    device = check_device(int(gpus))
    check_gpu_memory(device, float(gpu_memory_gib))
    check_dtype(device, dtype)
    print(0, *device.names, device.memory_bytes >> 20, device.detail, *device.remarks, sep="; ")
except JobError as error:
    print(int(error.code), error.message, error.resolution, sep="; ")
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a driver's library that tells of the card that the environment describes."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler to make the driver's stand-in with")
    directory = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", directory / "libnvidia-ml.so.1", source], check=True)
    return directory


def ask(
    driver: Path,
    card: Card,
    gpus: int = 1,
    gpu_memory_gib: float = 1,
    dtype: str = "auto",
    visible: str | None = None,
) -> str:
    """What the preflight says of a card: in a process of its own, since a library is looked for once."""
    variables = os.environ | {"LD_LIBRARY_PATH": str(driver)} | card.environment()
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    if visible is not None:
        variables["CUDA_VISIBLE_DEVICES"] = visible
    found = subprocess.run(
        [sys.executable, "-c", ASK, str(gpus), str(gpu_memory_gib), dtype],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


@pytest.mark.parametrize(
    ("card", "gpu_memory_gib"),
    [(V100, 16), (T4, 16), (L4, 24), (A10, 24), (A100_40, 40), (A100_80, 80), (H100, 80), (H200, 141)],
    ids=lambda value: value.name if isinstance(value, Card) else "",
)
def test_a_card_is_taken_by_the_size_on_its_box(driver: Path, card: Card, gpu_memory_gib: float) -> None:
    said = ask(driver, card, gpu_memory_gib=gpu_memory_gib)
    detail = f"driver 550.54.15 (CUDA 12.4), compute capability {card.capability}"
    assert said == f"0; {card.name}; {card.mib}; {detail}"


@pytest.mark.parametrize(("card", "nominal"), [(H100_1G, 10), (H100_3G, 40), (H200_1G, 18)])
def test_a_slice_is_told_by_its_own_name_and_memory(driver: Path, card: Card, nominal: float) -> None:
    said = ask(driver, card, gpu_memory_gib=nominal, dtype="bfloat16")
    detail = "driver 550.54.15 (CUDA 12.4), compute capability 9.0"
    assert said == f"0; {card.name} MIG {card.profile}; {card.mib}; {detail}"


def test_a_slice_is_judged_by_its_own_memory(driver: Path) -> None:
    said = ask(driver, H100_1G, gpu_memory_gib=80)
    assert said.startswith("71; the GPU has 9.8 GiB, and compute.gpu_memory_gib asks for 80")


def test_several_slices_do_not_train_together(driver: Path) -> None:
    said = ask(driver, replace(H100_3G, slices=2), gpus=2)
    assert said.startswith("78; compute.gpus is 2, and these are slices of a GPU (MIG)")


def test_a_gpu_that_is_cut_up_and_not_handed_out_counts_as_none(driver: Path) -> None:
    assert ask(driver, replace(H100_1G, slices=0)).startswith("71; compute.gpus is 1, and this machine has 0")


@pytest.mark.parametrize("card", [P100, B200, RTX_5090], ids=lambda card: card.name)
def test_a_card_without_kernels_is_refused(driver: Path, card: Card) -> None:
    expected = f"71; {card.name} has compute capability {card.capability}, for which this image has no kernels"
    assert ask(driver, card).startswith(expected)


@pytest.mark.parametrize(
    ("card", "gpu_memory_gib", "words"),
    [
        (T4, 24, "the GPU has 15.0 GiB, and compute.gpu_memory_gib asks for 24"),
        (A100_40, 48, "the GPU has 40.0 GiB, and compute.gpu_memory_gib asks for 48"),
        (A100_40, 80, "the GPU has 40.0 GiB, and compute.gpu_memory_gib asks for 80"),
    ],
)
def test_a_card_that_is_too_small_is_refused(driver: Path, card: Card, gpu_memory_gib: float, words: str) -> None:
    assert ask(driver, card, gpu_memory_gib=gpu_memory_gib).startswith(f"71; {words}")


def test_bfloat16_needs_ampere(driver: Path) -> None:
    said = ask(driver, T4, dtype="bfloat16")
    assert said.startswith("78; dtype is bfloat16, and Tesla T4 has none")
    assert "Set dtype to auto or float16" in said
    assert [ask(driver, card, dtype="bfloat16")[0] for card in (A100_40, L4)] == ["0", "0"]
    assert ask(driver, T4, dtype="float16").startswith("0;")


def test_a_driver_that_is_too_old(driver: Path) -> None:
    old = replace(A100_40, driver="470.57.02", cuda=11040)
    said = ask(driver, old)
    assert said.startswith("71; the driver 470.57.02 is made for CUDA 11.4, and this image is of CUDA 12.4")
    assert "525.60.13" in said


def test_any_driver_of_cuda_12_and_after_will_do(driver: Path) -> None:
    assert "driver 525.60.13 (CUDA 12.0)" in ask(driver, replace(A100_40, driver="525.60.13", cuda=12000))
    assert "driver 580.65.06 (CUDA 13.0)" in ask(driver, replace(A100_40, driver="580.65.06", cuda=13000))


@pytest.mark.parametrize(
    ("card", "gpus", "visible", "words"),
    [
        (replace(T4, driver=""), 1, None, "no usable GPU: NVML says Driver Not Loaded"),
        (replace(T4, cuda=0), 1, None, "the driver is there, and its libcuda.so.1 is not"),
        (replace(T4, count=0), 1, None, "compute.gpus is 1, and this machine has 0"),
        (replace(T4, count=2), 4, None, "compute.gpus is 4, and this machine has 2"),
        (replace(T4, is_lost=True), 1, None, "no usable GPU: NVML says GPU is lost"),
        (T4, 1, "", "compute.gpus is 1, and CUDA_VISIBLE_DEVICES= leaves 0"),
        (
            replace(T4, count=4),
            2,
            "3,7,1",
            "compute.gpus is 2, and CUDA_VISIBLE_DEVICES=3,7,1 leaves 1",
        ),
    ],
)
def test_a_machine_that_falls_short(driver: Path, card: Card, gpus: int, visible: str | None, words: str) -> None:
    said = ask(driver, card, gpus, visible=visible)
    code, message, resolution = said.split("; ", 2)
    assert (int(code), message) == (Exit.DEVICE, words)
    assert resolution


@pytest.mark.parametrize("visible", ["1,0", "GPU-002,GPU-001-of-this-test"])
def test_gpus_are_chosen_by_number_and_by_the_beginning_of_their_uuid(driver: Path, visible: str) -> None:
    assert ask(driver, replace(T4, count=2), 2, visible=visible).startswith("0; Tesla T4; Tesla T4;")


def test_a_slice_is_chosen_by_its_uuid(driver: Path) -> None:
    two = replace(H100_3G, slices=2)
    assert ask(driver, two, visible="MIG-104-of-this-test").startswith("0; NVIDIA H100 80GB HBM3 MIG")
    assert ask(driver, two, visible="MIG-103-of-this-test").startswith("71; compute.gpus is 1")


def test_memory_errors_are_told_and_end_nothing(driver: Path) -> None:
    said = ask(driver, replace(A10, errors=3))
    assert said.startswith("0;")
    assert said.endswith("NVIDIA A10 has had 3 uncorrected memory errors since its driver was loaded")


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a GPU")
def test_a_gpu_run_without_a_driver() -> None:
    with pytest.raises(DeviceError, match="no usable GPU"):
        check_device(1)


def test_a_pretended_gpu_of_the_cluster_answers_all_that_is_asked() -> None:
    standin = Path(__file__).parents[2] / "examples" / "cluster" / "standin" / "pynvml.py"
    program = "import sys; sys.path.insert(0, sys.argv.pop()); from pynvml import GIB\n"
    variables = os.environ | {"PRETENDED_GPUS": "2"}
    variables.pop("CUDA_VISIBLE_DEVICES", None)
    said = subprocess.run(
        [sys.executable, "-c", program + ASK, "2", "16", "float16", str(standin.parent)],
        env=variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.startswith("0; pretended T4; pretended T4; 15360; driver 550.0 (pretended) (CUDA 12.4)")


def test_the_capabilities_are_those_of_the_pinned_torch() -> None:
    """8.6 serves 8.9: a kernel runs on later cards of its own major version. Without PTX nothing serves 10.0."""
    said = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.version.cuda, torch._C._cuda_getArchFlags())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["12.4", *(f"sm_{number}" for number in (50, 60, 70, 75, 80, 86, 90))]
