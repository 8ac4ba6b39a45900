"""Counts the bytes of all tensors alive during real steps of train.py, beside the estimate; needs no GPU.

    torchrun --standalone --nproc_per_node 1 benchmarks/count_memory.py commands.json counts.json      [["--pretrained", …], …]

Every operation passes through a dispatch mode that notes each new storage and its end. The peak of
the forward pass, the backward pass and the optimizer step of the last step is what a device's
allocator would have had to hold, without its rounding and gaps.
"""

import gc
import json
import os
import sys
import weakref
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from colossal_llama.engine import launch
from colossal_llama.training.command_line import parse_arguments
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.console import is_rank_zero


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most of them in each phase since it was begun."""

    def __init__(self):
        super().__init__()
        self.live, self.peaks, self._sizes, self._phase = 0, {}, {}, None
        self._communicates = False

    def enter(self, phase: str) -> None:
        """Begins a phase; its former peak is forgotten."""
        self._phase = phase
        self.peaks[phase] = self.live

    def note(self, tensor: torch.Tensor) -> None:
        """Counts a tensor's storage until it is freed; once, however many tensors share it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, 0 if self._communicates else storage.nbytes()
        if key in self._sizes:
            return
        self._sizes[key] = size
        self.live += size
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == "c10d" and not self._communicates:
            return self._communicate(operation, args, kwargs or {})
        result = operation(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self.note(tensor)
        self.peaks[self._phase] = max(self.peaks[self._phase], self.live)
        return result

    def _communicate(self, operation: torch._ops.OpOverload, args: tuple, kwargs: dict) -> object:
        """Runs a collective to its end on copies, and counts neither them nor gloo's own tensors.

        Gloo's threads drop their references to a collective's tensors some time after `wait` has returned.
        On a busy host that may be a phase later: a count of the tensors themselves would depend on the host's load.
        """
        self._communicates = True
        with self:
            copies = tree_map_only(torch.Tensor, torch.clone, args)
            result = operation(*copies, **kwargs)
            dist.Work.unbox(result[-1] if isinstance(result, tuple) else result).wait()
            for tensor, copy in zip(tree_iter(args), tree_iter(copies), strict=True):
                if isinstance(tensor, torch.Tensor):
                    tensor.copy_(copy)
        self._communicates = False
        return result


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
    setup = memory_config_of(
        arguments, config, run.geometry.data_parallel_size, fused_kernels=False, flash_attention=False
    )
    expected = estimate(config, setup)
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
