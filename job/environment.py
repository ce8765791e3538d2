"""The environment of the children: pure, one table."""

from collections.abc import Mapping
from pathlib import Path

# What a child may inherit. No credential of the store is among it: children know nothing of S3.
_INHERITED = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES")
_INHERITED_PREFIXES = ("NVIDIA_", "NCCL_", "OMP_", "MKL_", "OPENBLAS_", "PYTORCH_")
_TRACKERS = {"wandb": "WANDB_", "mlflow": "MLFLOW_", "tensorboard": "TENSORBOARD_"}


def environment(
    home: Path,
    report: Path,
    llama_cpp: Path,
    gpus: int,
    cpus: int,
    trackers: tuple[str, ...],
    inherited: Mapping[str, str],
) -> dict[str, str]:
    """The variables of a child.

    Args:
        home: a directory on scratch for the home, caches and temporary files.
        report: where trackers leave files that are published.
        llama_cpp: the pinned llama.cpp.
        gpus: 0 for a CPU.
        cpus: how many threads have a processor each.
        trackers: `training.report_to`; their own variables are passed on.
        inherited: the supervisor's environment.
    """
    prefixes = _INHERITED_PREFIXES + tuple(_TRACKERS[name] for name in trackers)
    passed = {name: text for name, text in inherited.items() if name in _INHERITED or name.startswith(prefixes)}
    return (
        # Torch counts the node's processors. Threads that a pod has no share for wait for each other within its quota.
        {"OMP_NUM_THREADS": str(max(1, cpus // max(1, gpus)))}
        | passed
        | {
            # A uid without a passwd entry has no home and no name: torch and Unsloth ask for both at import.
            "HOME": str(home),
            "USER": "finetune",
            "LOGNAME": "finetune",
            "TMPDIR": str(home / "tmp"),
            "XDG_CACHE_HOME": str(home / "cache"),
            "MPLCONFIGDIR": str(home / "matplotlib"),
            "HF_HOME": str(home / "hf"),
            "HF_DATASETS_CACHE": str(home / "hf" / "datasets"),
            "TRITON_CACHE_DIR": str(home / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor"),
            # Generated trainers: private and fresh, a foreign or read-only cache fails the import.
            "UNSLOTH_COMPILE_LOCATION": str(home / "unsloth_compiled_cache"),
            "TENSORBOARD_LOGGING_DIR": str(report / "tensorboard"),
            "WANDB_DIR": str(home),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            # No network: the supervisor fetched everything.
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "DO_NOT_TRACK": "1",
            "UNSLOTH_DISABLE_STATISTICS": "1",
            "UNSLOTH_OFFLINE": "1",
            "UNSLOTH_LLAMA_CPP_OFFLINE": "1",
            "UNSLOTH_AUTO_INSTALL": "0",
            "UNSLOTH_LLAMA_CPP_PATH": str(llama_cpp),
            "UNSLOTH_LLAMA_CPP_SCRIPTS_DIR": str(llama_cpp),
            "UNSLOTH_PARALLEL_GGUF_QUANTS": "0",
            # Unsloth goes over the prepared rows once more, the first rank ahead of the others, in forked workers. An
            # error there is swallowed, and the barrier that the other ranks wait at is never reached.
            "UNSLOTH_DATASET_NUM_PROC": "0",
            "TOKENIZERS_PARALLELISM": "false",
        }
        | (_GPU if gpus else _CPU)
    )


# Without the first, a pod on a node that lost its GPU would train on the CPU for days.
_GPU = {"UNSLOTH_DISABLE_CPU_FALLBACK": "1"}
_CPU = {
    "UNSLOTH_FORCE_CPU": "1",
    # Unsloth picks bfloat16 by the processor, and the same run would differ from machine to machine.
    "UNSLOTH_CPU_BF16": "0",
    # When it is imported Inductor starts processes to compile for it, each with a torch of its own, and half as much work
    # again. Where NVIDIA_VISIBLE_DEVICES names cards, as in a pod, Unsloth sets the same.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}
