"""Python runs this at its start wherever this folder is on PYTHONPATH: the training child then prints which rows it takes."""

import sys

from tests.gpu_path.recording import record_batches
from tests.importing import around_import

around_import("unsloth", after=lambda: record_batches(lambda batch: sys.stdout.write(f"batch {batch}\n")))
