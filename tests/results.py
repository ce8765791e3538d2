"""What training told, where a test needs a result and no training."""

from job.contract.documents import TrainSummary

SUMMARY = TrainSummary(
    steps=1,
    train_loss=1.0,
    eval_loss=None,
    tokens_seen=1,
    tokens_trained=1,
    trainable_parameters=1,
    total_parameters=1,
    effective_batch=1,
    seconds=1.0,
    device="cpu",
    dtype="float32",
    peak_memory_bytes=1,
    memory_after_load_bytes=1,
)
