"""Records what a checkout computes, and compares two versions bit for bit.

Trains a tiny model with every plugin that runs on CPU processes, and records the losses, gradient
norms and SHA-256 of the final weights of each run, and of the prepared data. Two records of the
same machine must be equal where a change is said to leave behaviour as it was:

    python benchmarks/same_numbers.py --project BEFORE --work_dir W1 --output before.json
    python benchmarks/same_numbers.py --work_dir W2 --output after.json --compare before.json

`--resume_from W1` resumes the earlier version's checkpoints in the middle of each run instead of
beginning anew. All runs take 6 minutes on two cores.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors import safe_open

BF16 = ("--mixed_precision", "bf16")
PIPELINE = ("--accumulation_steps", "2", "--use_grad_checkpoint")
RUNS = {
    "zero2_fp32": ("--plugin", "zero2", "--mixed_precision", "fp32", "--accumulation_steps", "2"),
    "zero2_bf16_neft": ("--plugin", "zero2", *BF16, "--use_neft", "--use_grad_checkpoint"),
    "zero2_fp16": ("--plugin", "zero2", "--mixed_precision", "fp16"),
    "zero2_frozen": ("--plugin", "zero2", *BF16, "--freeze_non_embeds_params", "--loss_average", "micro_batch"),
    "zero2_lora": ("--plugin", "zero2", *BF16, "--lora_rank", "4", "--lora_dropout", "0.1", "--merge_lora"),
    "zero2_padded_sft": ("--plugin", "zero2", *BF16, "--padding_mode", "longest", "--pad_token", "unk"),
    "zero2_packed_sft": ("--plugin", "zero2", *BF16, "--use_neft"),
    "zero2_plain": ("--plugin", "zero2", *BF16, "--fused_kernels", "False", "--cross_document_attention"),
    "zero2_cpu": ("--plugin", "zero2_cpu", *BF16, "--accumulation_steps", "2"),
    "ddp": ("--plugin", "ddp", *BF16, "--shuffle", "global"),
    "3d_zero0": ("--plugin", "3d", "--zero", "0", *BF16),
    "3d_zero1": ("--plugin", "3d", "--zero", "1", *BF16),
    "3d_zero2_offload": ("--plugin", "3d", "--zero", "2", *BF16, "--zero_cpu_offload"),
    "3d_tp2": ("--plugin", "3d", "--zero", "1", "--tp", "2", *BF16),
    "3d_tp2_sp2": ("--plugin", "3d", "--zero", "1", "--tp", "2", "--sp", "2", *BF16),
    "3d_sp2": ("--plugin", "3d", "--zero", "2", "--sp", "2", "--sp_mode", "all_to_all", *BF16),
    "3d_pp2": ("--plugin", "3d", "--zero", "1", "--pp", "2", *PIPELINE, *BF16),
}
STEPS = 8
"""Optimizer steps of each run; a checkpoint is saved after half of them."""


def main() -> None:
    """Prepares the data, trains each way, writes the record and compares it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path(__file__).resolve().parents[1], help="checkout to record")
    parser.add_argument("--work_dir", type=Path, required=True, help="directory for models, data and runs")
    parser.add_argument("--output", type=Path, required=True, help="record to write, JSON")
    parser.add_argument("--compare", type=Path, help="an earlier record; exit code 1 where they differ")
    parser.add_argument("--resume_from", type=Path, help="another --work_dir: resume its checkpoints")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="runs to do")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    project, work = options.project.resolve(), options.work_dir.resolve()
    record = {"data": prepare(project, work)}
    for name in options.only:
        record[name] = train(project, work, name, options.resume_from)
        print(name, json.dumps(record[name]["loss"][-3:]), record[name]["weights"][:12], flush=True)
        options.output.write_text(json.dumps(record, indent=1))
    if options.compare:
        sys.exit(compare(json.loads(options.compare.read_text()), record))


def call(project: Path, *arguments: str) -> None:
    """Runs a script of the checkout; its output is shown when it fails."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def prepare(project: Path, work: Path) -> dict[str, str]:
    """Makes the base model and the data of the quick start; returns the SHA-256 of every file."""
    if not (work / "model").exists():
        call(project, "examples/make_base_model.py", "--output_dir", str(work / "model"))
    for kind in ("pretrain", "sft"):
        if not (work / kind).exists():
            directories = ("--tokenizer_dir", str(work / "model"), "--data_output_dirs", str(work / kind))
            arguments = ["--data_input_dirs", f"examples/{kind}", *directories]
            arguments += ["--max_length", "256", "--num_spliced_dataset_bins", "2"]
            arguments += ["--llama_version", "2"] if kind == "sft" else []
            call(project, f"prepare_{kind}_dataset.py", *arguments)
    files = [file for kind in ("pretrain", "sft") for file in (work / kind / "jsonl").iterdir()]
    files += (work / "model").glob("*.safetensors")
    return {str(file.relative_to(work)): hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def train(project: Path, work: Path, name: str, resume_from: Path | None) -> dict:
    """Trains one way on two processes; returns losses, gradient norms and a hash of the weights."""
    out = work / "runs" / name
    if not (out / "save" / "modelling").exists():
        kind = "sft" if "sft" in name else "pretrain"
        arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
        arguments += ["--pretrained", str(work / "model")]
        arguments += ["--dataset", *map(str, sorted((work / kind / "arrow").iterdir()))]
        arguments += ["--max_length", "256", "--micro_batch_size", "2", "--lr", "1e-3"]
        arguments += ["--max_steps", str(STEPS), "--save_interval", str(STEPS // 2)]
        arguments += ["--save_dir", str(out / "save"), "--tensorboard_dir", str(out / "logs")]
        arguments += ["--config_file", str(out / "config.json")]
        if resume_from:
            (checkpoint,) = (resume_from / "runs" / name / "save").glob(f"epoch-*_step-{STEPS // 2}")
            arguments += ["--load_checkpoint", str(checkpoint)]
        call(project, *arguments, *RUNS[name])
    lines = [json.loads(line) for line in (out / "logs" / "metrics.jsonl").read_text().splitlines()]
    return {
        "loss": [line["loss"] for line in lines],
        "gradient_norm": [line["gradient_norm"] for line in lines],
        "weights": hash_weights(out / "save"),
    }


def hash_weights(save_dir: Path) -> str:
    """Computes the SHA-256 of names, shapes, dtypes and bytes of the final models' tensors."""
    digest = hashlib.sha256()
    for file in sorted(save_dir.glob("modelling*/*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for key in sorted(tensors.keys()):
                tensor = tensors.get_tensor(key)
                digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def compare(before: dict, after: dict) -> int:
    """Prints what differs, run by run; returns the exit code: 0 when nothing does.

    A resumed run has the later steps only, which are compared with the last steps of the other.
    """
    different = 0
    for name, found in after.items():
        expected = before[name]
        if name != "data":
            expected = {
                key: value[-len(found[key]) :] if isinstance(value, list) else value for key, value in expected.items()
            }
        keys = [key for key in found if expected.get(key) != found[key]]
        different += bool(keys)
        print(f"{name:20} {'equal bit for bit' if not keys else 'DIFFERS in ' + ', '.join(keys)}")
    return int(different > 0)


if __name__ == "__main__":
    main()
