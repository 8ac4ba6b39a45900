"""Runs Gemini on CPU processes and prints the results as JSON (tests/engine/test_gemini.py).

    python -m tests.support.gemini_on_host RANKS

Gemini is made for devices that are not the host, and refuses the CPU as one. Its own classes run
here, with host memory as device memory: the accelerator is named cuda, its device is a string that
PyTorch takes for the CPU, and streams and page-locked memory are left out. So this shows where
Gemini keeps its tensors and when it updates them, and nothing about kernels, streams and speed.
"""

import contextlib
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import colossalai.accelerator
import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.engine.launch import prepare_engine
from colossal_llama.engine.patches.gemini import apply_gemini_patches, clear_gemini_caches

prepare_engine()
apply_gemini_patches()

from colossalai.booster import Booster  # noqa: E402
from colossalai.booster.plugin import GeminiPlugin  # noqa: E402
from colossalai.zero.gemini.chunk import ChunkManager  # noqa: E402

from colossal_llama.dataset.collator import Collator  # noqa: E402
from colossal_llama.engine.backend import Backend  # noqa: E402
from colossal_llama.engine.hybrid_adam import build_optimizer  # noqa: E402
from colossal_llama.engine.loss_scale import skipped_last_step  # noqa: E402
from colossal_llama.engine.optimizer_shards import ShardRange  # noqa: E402
from colossal_llama.engine.parameter_groups import NewRows, ParameterGroup  # noqa: E402
from colossal_llama.engine.plugins import PRECISIONS  # noqa: E402
from colossal_llama.model.attention.varlen import SDPA  # noqa: E402
from colossal_llama.model.kernels.per_token_loss import return_token_losses  # noqa: E402
from colossal_llama.model.weights.stored_tensors import shape_of  # noqa: E402
from colossal_llama.model.weights.weight_files import write_safetensors  # noqa: E402
from colossal_llama.training.checkpoint.model_files import fp32_weights  # noqa: E402
from colossal_llama.training.checkpoint.optimizer_io import (  # noqa: E402
    SavedOptimizer,
    index_of,
    restore_states,
    tensors_to_save,
)
from colossal_llama.training.checkpoint.staging import StagedFile  # noqa: E402
from colossal_llama.training.checkpoint.state import OPTIMIZER_INDEX  # noqa: E402
from colossal_llama.training.task_evaluation import TaskEvaluator  # noqa: E402
from colossal_llama.training.task_questions import PromptedQuestion  # noqa: E402
from colossal_llama.training.train_step import TrainStep  # noqa: E402

PROMPTS = [list(range(begin, begin + length)) for begin, length in ((5, 9), (30, 4), (50, 7), (71, 12), (3, 2))]
"""An odd number: a rank gets a placeholder."""
_SMALL_CHUNKS = {"min_chunk_size_m": 0.012, "search_range_m": 0.001, "hidden_dim": 8}
_OFFLOADED = {"offload_optim_frac": 1.0, "offload_param_frac": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "chunks": _SMALL_CHUNKS,
    "chunks_accumulated": {**_SMALL_CHUNKS, "enable_gradient_accumulation": True},
    "whole_accumulated": {"enable_gradient_accumulation": True},
    "offloaded_accumulated": {**_SMALL_CHUNKS, **_OFFLOADED, "enable_gradient_accumulation": True},
    "chunks_new_rows": {**_SMALL_CHUNKS, "trained": "new_rows"},
    "chunks_accumulated_new_rows": {**_SMALL_CHUNKS, "enable_gradient_accumulation": True, "trained": "new_rows"},
    "offloaded_accumulated_faster_rows": {
        **_SMALL_CHUNKS,
        **_OFFLOADED,
        "enable_gradient_accumulation": True,
        "trained": "faster_rows",
    },
    "fp16_accumulated": {**_SMALL_CHUNKS, **_OFFLOADED, "enable_gradient_accumulation": True, "precision": "fp16"},
}


class _Device(str):
    type = "cuda"


class _Stream:
    def synchronize(self) -> None: ...

    def wait_stream(self, other: object) -> None: ...


class _Accelerator(type(colossalai.accelerator.get_accelerator())):
    name = "cuda"

    def __init__(self):
        self._communication_backend, self._name = "gloo", "cuda"

    def get_current_device(self) -> str:
        return _Device("cpu")

    def Stream(self, *arguments: object, **settings: object) -> _Stream:
        return _Stream()

    def stream(self, stream_: object) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()


def main() -> None:
    ranks = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.spawn(_run, (ranks, directory), nprocs=ranks)
        print((Path(directory) / "found.json").read_text())


def _run(rank: int, ranks: int, directory: str) -> None:
    # By these utils.distributed_env knows which rank prints and saves.
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    colossalai.accelerator.set_accelerator(_Accelerator())
    empty = torch.empty
    torch.empty = lambda *sizes, pin_memory=False, **settings: empty(*sizes, **settings)
    dist.init_process_group("gloo", f"file://{directory}/store", rank=rank, world_size=ranks)
    dist.reduce_scatter_tensor = _reduce_scatter
    found = {name: _results_of(Path(directory) / name, dict(settings)) for name, settings in CASES.items()}
    found["kept"] = _chunk_managers()
    clear_gemini_caches()
    found["kept_after_clearing"] = _chunk_managers()
    if rank == 0:
        (Path(directory) / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _chunk_managers() -> int:
    """Number of the runs' chunk managers in memory, which reference all weights."""
    gc.collect()
    return sum(isinstance(thing, ChunkManager) for thing in gc.get_objects())


def _reduce_scatter(output: torch.Tensor, inputs: torch.Tensor, group: Any = None, async_op: bool = False) -> None:
    """Reduce-scatter for dtypes for which gloo has none."""
    whole = inputs.clone()
    dist.all_reduce(whole, group=group)
    output.copy_(whole.chunk(dist.get_world_size(group))[dist.get_rank(group)])


def _results_of(directory: Path, settings: dict[str, Any]) -> dict[str, Any]:
    run = Training(settings)
    norms = [run.step(number)[1] for number in range(3)]
    run.save(directory)
    weights = load_file(directory / "modelling" / "model.safetensors")
    answers = run.answers(PROMPTS)
    later = [run.step(number) for number in range(3, 6)]
    again = Training(settings, weights)
    again.restore(directory)
    results = {
        "norms": norms,
        "changed_rows": _changed_rows(weights, run.first_weights),
        "dtypes": sorted({str(weight.dtype) for weight in weights.values()}),
        "not_the_masters": _not_the_masters(directory, weights),
        "answers": answers,
        "answers_by_transformers": _answers_by_transformers(run.config, weights, run.backend.parameter_dtype),
        "continues_equally": [again.step(number) for number in range(3, 6)] == later and again.equals(run),
    }
    run.step(6, factor=1e30 if run.is_fp16 else float("nan"))
    results["overflowed"] = skipped_last_step(run.optimizer)
    results["refuses"] = run.equals(again)
    results["recovers"] = run.step(7) == again.step(7) and not skipped_last_step(run.optimizer)
    return results


def _not_the_masters(directory: Path, weights: dict[str, torch.Tensor]) -> list[str]:
    """Names of saved weights that are not the rounded master weights."""
    saved = SavedOptimizer(directory / "optimizer")
    wrong = []
    for name, weight in weights.items():
        if saved.shape(name) is None:  # frozen
            continue
        master = saved.read(name, "master_weight", ShardRange(tuple(weight.shape), None, 0, weight.numel()))
        if not torch.equal(master.to(weight.dtype).view_as(weight), weight):
            wrong.append(name)
    return wrong


def _answers_by_transformers(config: LlamaConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> list[int]:
    """Most probable next tokens of the prompts, one at a time."""
    network = LlamaForCausalLM(config).to(dtype)
    network.load_state_dict(weights)
    with torch.no_grad():
        return [int(network(torch.tensor([prompt])).logits[0, -1].argmax()) for prompt in PROMPTS]


def _groups(network: LlamaForCausalLM, trained: str) -> list[ParameterGroup]:
    """Groups in which the rows 70 to 94 of the embeddings are trained alone, or are faster."""
    if trained == "all":
        return []
    embeddings = [network.get_input_embeddings().weight, network.get_output_embeddings().weight]
    if trained == "new_rows":
        network.requires_grad_(False)
        for weight in embeddings:
            weight.requires_grad_(True)
        return [ParameterGroup("embeddings", embeddings, 1.0, NewRows(70, 95, 2.0, others_are_frozen=True))]
    others = [weight for weight in network.parameters() if all(weight is not other for other in embeddings)]
    rows = NewRows(70, 95, 4.0, others_are_frozen=False)
    return [ParameterGroup("layers", others), ParameterGroup("embeddings", embeddings, 0.5, rows)]


def _changed_rows(weights: dict[str, torch.Tensor], first: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    """Rows that differ, by the names of the weights that differ."""
    differ = {name: (weight != first[name]).view(len(weight), -1).any(1) for name, weight in weights.items()}
    return {name: rows.nonzero().flatten().tolist() for name, rows in differ.items() if rows.any()}


class Training:
    """A small model in Gemini."""

    def __init__(self, settings: dict[str, Any], weights: dict[str, torch.Tensor] | None = None):
        settings = {"precision": "bf16", **settings}
        self.is_fp16 = settings["precision"] == "fp16"
        trained = settings.pop("trained", "all")
        self.micro_batches = 2 if settings.get("enable_gradient_accumulation") else 1
        dtype = PRECISIONS[settings["precision"]]
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=101,
            hidden_size=32,
            intermediate_size=72,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            use_cache=False,
            attn_implementation="eager",
        )
        self.config = config
        network = LlamaForCausalLM(config).to(dtype)
        return_token_losses(network)
        if weights is not None:
            network.load_state_dict(weights)
        self.first_weights = {name: weight.detach().clone() for name, weight in network.named_parameters()}
        plugin = GeminiPlugin(max_norm=1.0, initial_scale=2.0**16, pin_memory=True, **settings)
        self.backend = Backend(Booster(plugin=plugin), plugin, dtype, None, clips_gradients=True)
        optimizer = build_optimizer(network, 1e-2, 0.1, _groups(network, trained))
        self.model, self.optimizer = self.backend.prepare(network, optimizer)

    def step(self, number: int, factor: float = 1.0) -> tuple[float, float]:
        """Loss and gradient norm."""
        total = 0.0
        for micro_batch in range(self.micro_batches):
            seed = torch.Generator().manual_seed(1000 * number + 10 * micro_batch + dist.get_rank())
            tokens = torch.randint(0, 101, (2, 16), generator=seed)
            loss = self.model(input_ids=tokens, labels=tokens).loss / self.micro_batches
            self.optimizer.backward(loss * factor)
            total += loss.item()
        self.optimizer.step()
        norm = self.optimizer.get_grad_norm()
        self.optimizer.zero_grad()
        return total, norm

    def answers(self, prompts: list[list[int]]) -> list[int]:
        """Most probable next tokens, as `--eval_tasks` asks for them: on each rank a share."""
        tokens = torch.arange(self.config.vocab_size)
        questions = [PromptedQuestion("", np.array(prompt), tuple((int(t),) for t in tokens), 0) for prompt in prompts]
        train_step = TrainStep(self.backend, self.model, self.optimizer, torch.device("cpu"))
        evaluator = TaskEvaluator(train_step, questions, Collator(0, 64), tokens_per_batch=16, interval_steps=1)
        self.config._attn_implementation = SDPA  # which reads the document mask
        try:
            return evaluator._answers(lambda: False)
        finally:
            self.config._attn_implementation = "eager"

    def shards(self) -> list[Any]:
        return self.backend.optimizer_shards(self.model, self.optimizer)

    def equals(self, other: "Training") -> bool:
        """True when both have the same master weights and states."""
        return all(
            torch.equal(a.master, b.master)
            and all(torch.equal(a.states[k], b.states[k]) for k in ("exp_avg", "exp_avg_sq"))
            for a, b in zip(self.shards(), other.shards(), strict=True)
        )

    def save(self, directory: Path) -> None:
        """Writes the model and optimizer files of a checkpoint."""
        for folder in ("optimizer", "modelling"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        file = StagedFile(f"rank-{dist.get_rank()}.safetensors")
        for name, tensor, note in tensors_to_save(self.shards()):
            file.add(name, shape_of(tensor), [tensor.clone()], note)
        if file.shapes:  # else this rank's chunks have nothing that is trained
            write_safetensors(directory / "optimizer" / file.name, file.shapes, file.slices.__getitem__, file.metadata)
        weights = {name: tensor.clone() for name, tensor in self.backend.weights_to_save(self.model)}
        if weights:
            save_file(weights, directory / "modelling" / "model.safetensors")
        dist.barrier()
        if dist.get_rank() == 0:
            files = [path.name for path in (directory / "optimizer").glob("rank-*")]
            (directory / "optimizer" / OPTIMIZER_INDEX).write_text(
                json.dumps({**index_of(self.optimizer), "files": files})
            )
        dist.barrier()

    def restore(self, directory: Path) -> None:
        """Restores as training.checkpoint.restore does, apart from the loss scale."""
        saved = SavedOptimizer(directory / "optimizer")
        restore_states(saved, self.shards(), fp32_weights(directory / "modelling"))
        saved.close()


if __name__ == "__main__":
    main()
