"""Python runs this at its start wherever this folder is on PYTHONPATH: so a child, and each rank that torchrun starts, is emulated without a word of it in `job`."""

from tests.gpu_path import emulation

emulation.prepare()
