"""`make gpu-smoke`, as far as a machine without a GPU gets."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu_path.runs import ROOT


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a GPU")
def test_without_a_gpu_it_ends_with_71_and_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu_path.smoke", str(tmp_path / "out")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 71
    assert "no usable GPU: NVML says" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()
