"""Predicts memory and time of a training step on many GPUs, from a measurement on one.

    python colossal_llama/training/memory/scale_model.py --models 7b 13b --gpus 8 16 32 64
    python colossal_llama/training/memory/scale_model.py --check

    step = compute + update + exposed communication

    compute      FLOPs of one GPU's tokens / (peak FLOP/s x utilisation of the measured rate)
    update       parameters of one GPU's optimizer shard x bytes moved for each / memory bandwidth
    exposed      communication that the backward pass does not hide

    zero2        per micro-batch a reduce-scatter of the gradients, hidden as far as the backward
                 pass lasts; per step an all-gather of the weights, not hidden
    zero2_cpu    the same; the optimizer shard crosses PCIe, and the host's memory bandwidth bounds
                 its update
    gemini       per micro-batch two all-gathers of the weights (forward, backward) and a
                 reduce-scatter; nothing is hidden
    3d, ZeRO 1   per step an all-reduce of the gradients, hidden likewise, and an all-gather; with
                 tensor parallelism two all-reduces of the activations a layer in each of forward,
                 backward and recomputation, not hidden

A collective over n ranks moves (n - 1)/n of its bytes, an all-reduce twice that. Its bus bandwidth
is that of the links in a host; beyond a host it is the smaller of that and the bandwidth of all
network cards of a host. Each bucket adds n - 1 hops of latency. Memory is that of
training.memory.estimate. Assumed are rows of one document, gradient checkpointing of every layer,
and bf16. `--check` compares predictions with published figures.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from colossal_llama.model.param_count import flops_per_token, parameters
from colossal_llama.training.memory.config import MemoryConfig
from colossal_llama.training.memory.estimate import MemoryEstimate, estimate
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import CollectingArgumentParser, number_in_range
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import run_main
from colossal_llama.utils.output_file import output_file_problem

GPUS_PER_HOST = 8
_RECORD_BEGINNING = b'{\n  "rate": '
_BUCKET_BYTES = 24 * 2**20  # of ZeRO's communication in half precision


@dataclass(frozen=True)
class Hardware:
    """Rates of a GPU and of its host, from datasheets.

    `efficiency` is the assumed share of the link bandwidth that a collective reaches.
    """

    peak_flops: float
    memory_gib: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Bandwidth of one GPU's NVLink, one direction."""
    network_bytes_per_s: float
    """Bandwidth of all network cards of a host, one direction."""
    efficiency: float = 0.8
    hop_latency_s: float = 5e-6
    pcie_bytes_per_s: float = 25e9
    host_memory_bytes_per_s: float = 300e9
    """Memory bandwidth of a host, shared by its processes."""

    def bus(self, ranks: int, ranks_per_host: int) -> float:
        """Bus bandwidth in bytes/s of a collective over `ranks` ranks."""
        slowest = (
            self.link_bytes_per_s if ranks <= ranks_per_host else min(self.link_bytes_per_s, self.network_bytes_per_s)
        )
        return self.efficiency * slowest


HARDWARE = {
    "h200": Hardware(989e12, 139.0, 4.8e12, 450e9, 400e9),  # 8 cards of 400 Gbit/s a host
    "h100": Hardware(989e12, 79.0, 3.35e12, 450e9, 400e9),
    "a800": Hardware(312e12, 79.0, 2.0e12, 200e9, 100e9),  # assumed 4 cards of 200 Gbit/s; not in the publication
}


def llama(width: int, inner: int, layers: int, heads: int, key_value_heads: int, vocabulary: int) -> SimpleNamespace:
    """Builds a LLaMA's configuration with the names of transformers' `LlamaConfig`."""
    return SimpleNamespace(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )


MODELS = {
    "1.25b": llama(2048, 5632, 22, 32, 4, 69_104),
    "7b": llama(4096, 11_008, 32, 32, 32, 69_104),
    "7b-32k": llama(4096, 11_008, 32, 32, 32, 32_000),
    "13b": llama(5120, 13_824, 40, 40, 40, 69_104),
}


@dataclass(frozen=True)
class Rate:
    """Throughput measured on one GPU: every layer recomputed, rows of 4,096 tokens."""

    model: str
    hardware: str
    micro_batch_size: int
    tokens_per_s: float
    update_bytes_per_parameter: int
    """Memory traffic of the optimizer step.

    30 for the fused ZeRO step: gradient read twice, three fp32 values read and written, new weight.
    46 for ColossalAI's own step, which adds fp32 copies of all gradients and their norm in fp64."""
    source: str


RATES = {
    "plain-7b": Rate("7b", "h200", 4, 7_940, 46, "plain recipe on ColossalAI zero2"),
    "plain-1.25b": Rate("1.25b", "h200", 8, 36_500, 46, "plain recipe on ColossalAI zero2"),
    "suite-1.25b": Rate(
        "1.25b", "h200", 8, 44_375, 46, "zero2 of train.py, every layer recomputed, ColossalAI's own optimizer step"
    ),
}


@dataclass(frozen=True)
class Run:
    """Training run to predict."""

    model: str
    hardware: str
    gpus: int
    plugin: str = "zero2"
    tensor_parallel_size: int = 1
    micro_batch_size: int = 8
    accumulation_steps: int = 1
    length_tokens: int = 4096


@dataclass(frozen=True)
class Prediction:
    """Predicted time of a step, and memory of one GPU."""

    compute_s: float
    update_s: float
    exposed_s: float
    tokens_per_s_per_gpu: float
    memory_bytes: int
    fits: bool

    @property
    def step_s(self) -> float:
        """Seconds of the whole step."""
        return self.compute_s + self.update_s + self.exposed_s


def utilisation(rate: Rate) -> float:
    """Share of the peak FLOP/s that the measured rate reached in forward and backward pass."""
    config, hardware = MODELS[rate.model], HARDWARE[rate.hardware]
    tokens = rate.micro_batch_size * 4096
    update_s = parameters(config) * rate.update_bytes_per_parameter / hardware.memory_bytes_per_s
    compute_s = tokens / rate.tokens_per_s - update_s
    return tokens * flops_per_token(config, 4096) / compute_s / hardware.peak_flops


def predict(run: Run, rate: Rate, hardware: Hardware | None = None) -> Prediction:
    """Predicts a step of a run with the utilisation of a measured rate.

    Args:
        run: its tensor parallel size must divide the number of GPUs, and fit into a host.
        rate: measured, possibly with another model or GPU; its utilisation is used.
        hardware: replaces that of `HARDWARE`.
    """
    hardware, config = hardware or HARDWARE[run.hardware], MODELS[run.model]
    tp, data_parallel = run.tensor_parallel_size, run.gpus // run.tensor_parallel_size
    tokens = run.micro_batch_size * run.length_tokens
    speed = hardware.peak_flops * utilisation(rate) * tp
    micro_step_s = tokens * flops_per_token(config, run.length_tokens) / speed
    update_s, memory = _update_s(run, rate, config, hardware), _memory(run, config)
    exposed_s = _exposed_s(run, config, hardware, micro_step_s)
    compute_s = run.accumulation_steps * micro_step_s
    step_s = compute_s + update_s + exposed_s
    per_gpu = run.accumulation_steps * tokens * data_parallel / run.gpus / step_s
    return Prediction(
        compute_s, update_s, exposed_s, per_gpu, memory.peak_bytes, memory.fits(int(hardware.memory_gib * 2**30))
    )


def _memory(run: Run, config: Any) -> MemoryEstimate:
    settings = MemoryConfig(
        plugin=run.plugin,
        data_parallel_size=run.gpus // run.tensor_parallel_size,
        tensor_parallel_size=run.tensor_parallel_size,
        micro_batch_size=run.micro_batch_size,
        length_tokens=run.length_tokens,
        accumulation_steps=run.accumulation_steps,
        recomputed_layers=config.num_hidden_layers,
    )
    return estimate(config, settings)


def _update_s(run: Run, rate: Rate, config: Any, hardware: Hardware) -> float:
    shard = parameters(config) / run.gpus  # all these plugins shard the states over all ranks
    if run.plugin != "zero2_cpu":
        return shard * rate.update_bytes_per_parameter / hardware.memory_bytes_per_s
    processes = min(run.gpus, GPUS_PER_HOST)
    return shard * (4 / hardware.pcie_bytes_per_s + 30 * processes / hardware.host_memory_bytes_per_s)


def _exposed_s(run: Run, config: Any, hardware: Hardware, micro_step_s: float) -> float:
    """Seconds of communication that the backward pass does not hide."""
    tp, ranks = run.tensor_parallel_size, run.gpus // run.tensor_parallel_size
    weights = 2 * parameters(config) / tp
    ranks_per_host = GPUS_PER_HOST // tp
    gather_s = _collective_s(weights, ranks, ranks_per_host, hardware, tp)
    backward_s = 0.75 * micro_step_s  # with recomputation the first forward pass is a quarter
    micro_steps = run.accumulation_steps
    if run.plugin == "gemini":
        return 3 * gather_s * micro_steps
    if run.plugin == "3d":
        return max(0.0, 2 * gather_s - backward_s) + gather_s + micro_steps * _tensor_parallel_s(run, config, hardware)
    return max(0.0, gather_s - backward_s) * micro_steps + gather_s


def _collective_s(size_bytes: float, ranks: int, ranks_per_host: int, hardware: Hardware, groups: int = 1) -> float:
    """Seconds of an all-gather or reduce-scatter; `groups` concurrent ones share network cards."""
    if ranks == 1:
        return 0.0
    shared = (
        hardware
        if ranks <= ranks_per_host
        else replace(hardware, network_bytes_per_s=hardware.network_bytes_per_s / groups)
    )
    buckets = max(1.0, size_bytes / _BUCKET_BYTES)
    return (
        size_bytes * (ranks - 1) / ranks / shared.bus(ranks, ranks_per_host)
        + buckets * (ranks - 1) * hardware.hop_latency_s
    )


def _tensor_parallel_s(run: Run, config: Any, hardware: Hardware) -> float:
    """Seconds of the all-reduces of one micro-batch's activations.

    There are two a layer in each of forward pass, recomputation and backward pass.
    """
    tp = run.tensor_parallel_size
    size = 2 * run.micro_batch_size * run.length_tokens * config.hidden_size
    one_s = 2 * size * (tp - 1) / tp / hardware.bus(tp, GPUS_PER_HOST) + 2 * (tp - 1) * hardware.hop_latency_s
    return 6 * config.num_hidden_layers * one_s


@dataclass(frozen=True)
class Published:
    """Published throughput, and the run that it was measured on, as far as that is known."""

    run: Run
    tokens_per_s_per_gpu: float
    what: str


PUBLISHED = (
    Published(Run("7b", "a800", 64), 2_460, "LLaMA-2-7B, 69,104 rows, 64 A800"),
    Published(Run("7b-32k", "h200", 8), 8_771, "ColossalAI's own: 7B, zero2, 8 H200"),
)


def check(rate: Rate) -> list[list[Any]]:
    """Compares predictions with published figures: rows of a table, deviation in per cent."""
    rows = []
    for published in PUBLISHED:
        predicted = predict(published.run, rate).tokens_per_s_per_gpu
        deviation = f"{100 * (predicted / published.tokens_per_s_per_gpu - 1):+.1f} %"
        rows.append([published.what, round(published.tokens_per_s_per_gpu), round(predicted), deviation])
    return rows


PLUGINS = {"zero2": ("zero2", 1), "zero2_cpu": ("zero2_cpu", 1), "gemini": ("gemini", 1)}
PLUGINS |= {f"3d-tp{size}": ("3d", size) for size in (2, 4, 8)}


def main() -> None:
    """Prints the comparison, or the predictions for the given models and numbers of GPUs."""
    options = parse_arguments()
    rate = rate_of(options)
    print(f"rate: {rate.tokens_per_s:,.0f} tokens/s with {rate.model} on one {rate.hardware} ({rate.source})")
    print(f"utilisation in forward and backward pass, carried over: {utilisation(rate):.3f}")
    if options.check:
        print(table(["published", "tokens/s/GPU", "predicted", "deviation"], check(rate)))
        return
    hardware = HARDWARE[options.hardware]
    given = {"link_bytes_per_s": options.link_gb_s, "network_bytes_per_s": options.network_gb_s}
    hardware = replace(hardware, **{name: value * 1e9 for name, value in given.items() if value})
    print(
        f"{options.hardware}: link {hardware.link_bytes_per_s / 1e9:.0f}, network "
        f"{hardware.network_bytes_per_s / 1e9:.0f} GB/s a host"
    )
    rows, record = [], []
    for model in options.models:
        for gpus in options.gpus:
            for name in options.plugins:
                plugin, tp = PLUGINS[name]
                run = Run(
                    model, options.hardware, gpus, plugin, tp, options.micro_batch_size, options.accumulation_steps
                )
                prediction = predict(run, rate, hardware)
                record.append({**asdict(run), **asdict(prediction), "step_s": prediction.step_s})
                rows.append(_row(name, run, prediction))
    header = [
        "model",
        "GPUs",
        "plugin",
        "GiB/GPU",
        "fits",
        "compute s",
        "update s",
        "exposed s",
        "step s",
        "tokens/s/GPU",
        "10^9 tokens h",
    ]
    print(table(header, rows))
    if options.record:
        write_json(options.record, {"rate": asdict(rate), "hardware": asdict(hardware), "predictions": record})


def _row(name: str, run: Run, prediction: Prediction) -> list[Any]:
    seconds = [
        f"{value:.2f}" for value in (prediction.compute_s, prediction.update_s, prediction.exposed_s, prediction.step_s)
    ]
    hours = 1e9 / (prediction.tokens_per_s_per_gpu * run.gpus) / 3600
    memory = f"{prediction.memory_bytes / 2**30:.1f}"
    speed = round(prediction.tokens_per_s_per_gpu)
    return [run.model, run.gpus, name, memory, "yes" if prediction.fits else "no", *seconds, speed, f"{hours:.2f}"]


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(
        prog="scale_model.py", description="Predict memory and time of a training step on many GPUs."
    )
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=["7b", "13b"], metavar="MODEL", help=f"of {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--gpus", nargs="+", type=number_in_range(int, 1), default=[8, 16, 32, 64], metavar="N", help="numbers of GPUs"
    )
    parser.add_argument(
        "--plugins",
        nargs="+",
        choices=PLUGINS,
        default=list(PLUGINS),
        metavar="PLUGIN",
        help=f"of {', '.join(PLUGINS)}",
    )
    parser.add_argument("--hardware", choices=HARDWARE, default="h200", help="GPU and host")
    parser.add_argument(
        "--link_gb_s",
        type=number_in_range(float, above=0),
        metavar="GB/S",
        help="bandwidth of one GPU's NVLink, one direction",
    )
    parser.add_argument(
        "--network_gb_s",
        type=number_in_range(float, above=0),
        metavar="GB/S",
        help="bandwidth of all network cards of a host, one direction",
    )
    parser.add_argument(
        "--micro_batch_size", type=number_in_range(int, 1), default=8, metavar="ROWS", help="rows of 4,096 tokens"
    )
    parser.add_argument(
        "--accumulation_steps", type=number_in_range(int, 1), default=1, metavar="N", help="micro-batches a step"
    )
    parser.add_argument("--rate", choices=RATES, default="plain-7b", help="measured rate to start from")
    parser.add_argument(
        "--tokens_per_s",
        type=number_in_range(float, above=0),
        metavar="N",
        help="replaces the throughput of --rate",
    )
    parser.add_argument("--check", action="store_true", help="compare with published figures")
    parser.add_argument("--record", type=Path, metavar="FILE", help="predictions as JSON")
    options = parser.parse_args()
    for name in options.plugins:
        size = PLUGINS[name][1]
        for gpus in (gpus for gpus in options.gpus if gpus % size):
            parser.problem(f"--gpus {gpus} is not a multiple of the tensor parallel size of {name}")
        for model in options.models:
            heads = MODELS[model].num_key_value_heads
            if heads % size:
                parser.problem(
                    f"--plugins {name} divides the heads, and {model} has {heads} key-value heads: leave one out"
                )
    if options.record is not None and (problem := output_file_problem(options.record, _RECORD_BEGINNING)):
        parser.problem(f"--record {problem}")
    if options.tokens_per_s and not 0 < utilisation(rate_of(options)) <= 1:
        parser.problem(
            f"--tokens_per_s {options.tokens_per_s:,.0f} is more than the GPU's peak allows for the model of --rate "
            f"{options.rate}"
        )
    parser.finish()
    return options


def rate_of(options: argparse.Namespace) -> Rate:
    """Measured rate of the command line."""
    rate = RATES[options.rate]
    if options.tokens_per_s:
        rate = replace(rate, tokens_per_s=options.tokens_per_s, source="--tokens_per_s")
    return rate


if __name__ == "__main__":
    run_main(main)
