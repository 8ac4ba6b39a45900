"""End of a run: saves the final model, merges a LoRA adapter, and logs their paths."""

from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.benchmark import describe, speed
from colossal_llama.training.checkpoint.model_files import save_merged_model
from colossal_llama.training.inputs import RunInputs
from colossal_llama.training.metrics import BENCHMARK_FILE, METRICS_FILE
from colossal_llama.training.trainer import Trainer
from colossal_llama.utils.console import is_rank_zero, log_rank_zero


def finish_run(arguments: TrainingArguments, trainer: Trainer, inputs: RunInputs, finished: bool) -> None:
    """Saves the final model of a finished run, or logs a benchmark's figures. A collective.

    Args:
        arguments: of the run.
        trainer: after training.
        inputs: its model is the one into which the adapter is merged (`--merge_lora`).
        finished: False when a signal ended the run early, with its checkpoint saved.
    """
    logs, progress = arguments.records.tensorboard_dir, trainer.progress
    if arguments.benchmark.benchmark:
        if is_rank_zero():
            record = logs / BENCHMARK_FILE
            log_rank_zero(f"benchmark: {describe(speed(record))}; the metrics are in {record}")
    elif finished:
        assert trainer.saver is not None, "benchmarks alone have none"
        path = trainer.saver.save_model()
        log_rank_zero(
            f"done: {progress.step} steps, {progress.tokens_seen:,} tokens ({progress.target_tokens_seen:,} targets); "
            f"the model is in {path}, the metrics are in {logs / METRICS_FILE}"
        )
        if arguments.method.merge_lora:
            save_dir = arguments.checkpoint.save_dir
            merged = save_merged_model(save_dir, inputs.model_path, trainer.tokenizer, inputs.record_of_new_rows())
            log_rank_zero(f"base and adapter merged: {merged}")
