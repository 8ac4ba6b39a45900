"""Counts the bytes of all tensors alive during real steps of train.py, next to the estimate.

    torchrun --standalone --nproc_per_node 1 -m tests.support.count_memory commands.json counts.json

commands.json holds a list of train.py's command lines, each a list of strings. The peaks of the
forward pass, the backward pass and the optimizer step of each run's last step are written; needs
no GPU.
"""

import gc
import json
import os
import sys
from pathlib import Path

from colossal_llama.engine import launch
from colossal_llama.training.command_line import parse_arguments
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import is_rank_zero
from tests.support.live_bytes import LiveBytes


def count(command: list[str]) -> dict:
    """Peaks of one run's last step, and the estimate for it."""
    from colossal_llama.training.inputs import open_inputs, with_data_defaults
    from colossal_llama.training.memory.config import memory_config_of
    from colossal_llama.training.memory.estimate import estimate
    from colossal_llama.training.model_setup import set_up_model
    from colossal_llama.training.run_builder import build_trainer

    arguments = parse_arguments(command, has_gpu=launch.has_gpu(), world_size=int(os.environ["WORLD_SIZE"]))
    counter = LiveBytes()
    counter.enter("start")
    inputs = open_inputs(arguments)
    arguments = with_data_defaults(arguments, inputs)
    with counter:
        setup = set_up_model(arguments, inputs)
        for tensor in (*setup.model.parameters(), *setup.model.buffers()):
            counter.note(tensor)
        run = build_trainer(arguments, inputs, setup)
    _watch(run.train_step, counter)
    run.fit()
    config = setup.model.config
    settings = memory_config_of(
        arguments, config, run.geometry.data_parallel_size, fused_kernels=False, flash_attention=False
    )
    expected = estimate(config, settings)
    counted = {phase: counter.peaks[phase] for phase in expected.phases}
    return {"counted": counted, "estimated": expected.phases, "estimated_host_bytes": expected.host_bytes}


def _watch(train_step, counter: LiveBytes) -> None:
    """Puts the counter around the parts of a step, from the outside."""
    step, forward, update = train_step.step, train_step._loss, train_step.backend.optimizer_step

    def counted_step(*arguments, **settings):
        with counter:
            return step(*arguments, **settings)

    def counted_forward(*arguments):
        counter.enter("forward")
        loss = forward(*arguments)
        counter.enter("backward")
        return loss

    def counted_update(*arguments):
        counter.enter("optimizer step")
        result = update(*arguments)
        counter.enter("between steps")
        return result

    train_step.step, train_step._loss = counted_step, counted_forward
    object.__setattr__(train_step.backend, "optimizer_step", counted_update)  # it is frozen


def main() -> None:
    """Counts every command's run; writes a list in their order."""
    commands = json.loads(Path(sys.argv[1]).read_text())
    launch.launch(seed=0)
    counts = []
    for command in commands:
        counts.append(count(command))
        gc.collect()
    if is_rank_zero():
        write_json(Path(sys.argv[2]), counts)
    launch.leave()


if __name__ == "__main__":
    main()
