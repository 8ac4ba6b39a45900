r"""Other training recipes to compare with, started by benchmarks/train_throughput.py.

    torchrun --nproc_per_node 1 benchmarks/other_recipes.py trainer --model DIR --part DIR \
        --micro_batch_size 8 --steps 12 --output FILE

    plain     ColossalAI's Booster with zero2 as published scripts use it: transformers' model with
              a padding mask, no fused kernels, whole logits, every layer recomputed, ColossalAI's
              own optimizer step
    trainer   Hugging Face Trainer with Liger's kernels and PyTorch's fused AdamW, weights and
              optimizer states in bf16 (the fastest it offers); no fp32 master weights

Rows shorter than 4,096 tokens are padded to that. FILE receives the seconds and the tokens of every
step, padding excluded, and the peak memory: those of all processes together, which have a
micro-batch each.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
import numpy as np
import torch

from benchmarks.random_run import LENGTH_TOKENS
from colossal_llama.utils.atomic_io import write_json

LR, WEIGHT_DECAY, CLIPPING = 3e-4, 0.1, 1.0


def main() -> None:
    """Runs one recipe and writes its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=("plain", "trainer"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--part", required=True)
    parser.add_argument("--micro_batch_size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--no_checkpointing", action="store_true", help="recipe trainer: no activation checkpointing")
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    step_s, losses = {"plain": plain, "trainer": trainer}[options.recipe](options)
    if int(os.environ.get("RANK", "0")):
        return
    rows = options.micro_batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    lengths = [len(ids) for ids in rows_of(options.part)[: options.steps * rows]["input_ids"]]
    by_step = np.array(lengths).reshape(options.steps, rows).sum(axis=1)
    figures = {"step_s": step_s, "tokens": by_step.tolist(), "losses": losses, "peak_memory_gib": peak}
    write_json(options.output, figures)


def rows_of(part: str) -> datasets.Dataset:
    """Opens ids and labels of a prepared part."""
    return datasets.load_from_disk(part).select_columns(["input_ids", "labels"]).with_format("torch")


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Collates rows into a batch padded to 4,096 tokens, with its padding mask."""
    missing = [LENGTH_TOKENS - len(row["input_ids"]) for row in rows]

    def filled(name: str, value: int) -> torch.Tensor:
        pad = torch.nn.functional.pad
        return torch.stack(
            [pad(row[name].long(), (0, count), value=value) for row, count in zip(rows, missing, strict=True)]
        )

    mask = torch.stack([torch.arange(LENGTH_TOKENS) < LENGTH_TOKENS - count for count in missing]).long()
    return {"input_ids": filled("input_ids", 0), "labels": filled("labels", -100), "attention_mask": mask}


def plain(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Trains with ColossalAI's zero2; returns seconds and loss of every step."""
    from colossal_llama.engine import launch

    launch.launch(seed=0)
    from colossalai.booster import Booster
    from colossalai.booster.plugin import LowLevelZeroPlugin
    from colossalai.nn.lr_scheduler import CosineAnnealingWarmupLR
    from colossalai.nn.optimizer import HybridAdam
    from transformers import AutoModelForCausalLM

    device = launch.current_device()
    model = AutoModelForCausalLM.from_pretrained(options.model, trust_remote_code=False, torch_dtype=torch.bfloat16).to(
        device
    )
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    optimizer = HybridAdam(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, adamw_mode=True)
    schedule = CosineAnnealingWarmupLR(optimizer, total_steps=options.steps, warmup_steps=1, eta_min=0.1 * LR)
    plugin = LowLevelZeroPlugin(stage=2, precision="bf16", max_norm=CLIPPING, overlap_communication=launch.has_gpu())
    booster = Booster(plugin=plugin)
    model, optimizer, *_ = booster.boost(model, optimizer)
    model.train()
    rows = rows_of(options.part)
    sampler = torch.utils.data.DistributedSampler(rows, shuffle=False)
    loader = torch.utils.data.DataLoader(rows, options.micro_batch_size, sampler=sampler, collate_fn=padded)
    step_s, losses = [], []
    for _, batch in zip(range(options.steps), loader, strict=False):
        started = time.perf_counter()
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        booster.backward(loss, optimizer)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())  # waits for the device, as published loops do
        step_s.append(time.perf_counter() - started)
    launch.leave()
    return step_s, losses


def trainer(options: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Trains with Hugging Face Trainer and Liger; returns seconds and loss of every step."""
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    step_s: list[float] = []

    class Clock(TrainerCallback):
        """Measures the seconds of every step, including the device's work."""

        def on_step_begin(self, *_, **__):
            self.started = time.perf_counter()

        def on_step_end(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            step_s.append(time.perf_counter() - self.started)

    model = AutoModelForCausalLM.from_pretrained(options.model, trust_remote_code=False, torch_dtype=torch.bfloat16)
    model.config.use_cache = False
    run = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(options.output) + ".trainer",
            per_device_train_batch_size=options.micro_batch_size,
            max_steps=options.steps,
            learning_rate=LR,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIPPING,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            optim="adamw_torch_fused",
            use_liger_kernel=torch.cuda.is_available(),
            gradient_checkpointing=not options.no_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            dataloader_pin_memory=True,
        ),
        train_dataset=rows_of(options.part),
        data_collator=padded,
        callbacks=[Clock()],
    )
    run.train()
    return step_s, [entry["loss"] for entry in run.state.log_history if "loss" in entry]


if __name__ == "__main__":
    main()
