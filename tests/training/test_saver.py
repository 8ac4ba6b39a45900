"""A checkpoint that cannot be written: reported on every rank, deleted, and the run goes on."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.support.training_runs import ranks_of, torchrun
from tests.support.waiting import wait_until

BATCH = ("--micro_batch_size", "2", "--accumulation_steps", "2", "--mixed_precision", "bf16")

COMMITS = """
import datetime, json, os
from dataclasses import asdict
from pathlib import Path
import torch, torch.distributed as dist
from colossal_llama.model.weights.stored_tensors import TensorShape
from colossal_llama.training.checkpoint import commit
from colossal_llama.training.checkpoint.commit import DirectoryCommit, commit_stores
from colossal_llama.training.checkpoint.staging import StagedFile

commit._HEARTBEAT_TIMEOUT_S = 2.0
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
rank, place = dist.get_rank(), Path("{place}")
said = []

def write(number, name, start=True):
    def complete(directory, written):
        (directory / "complete.json").write_text(json.dumps({{name: asdict(file) for name, file in written.items()}}))

    pending = DirectoryCommit(place / "checkpoint", commit_stores(f"test-{{number}}"), complete)
    held = torch.full((4,), float(number))
    file = StagedFile(name)
    file.add("numbers", TensorShape((4,), "F32"), [held[:3], held[3:]], {{}})
    pending.add(file)
    if not start:
        return
    pending.start()
    said.append(pending.wait().error)

write(1, f"parts/rank-{{rank}}.safetensors")
# A name that no file system takes, on rank 1
write(2, "x" * 300 if rank == 1 else "short")
write(3, f"parts/rank-{{rank}}.safetensors", start=rank == 0)
dist.barrier()
(place / f"said-{{rank}}.json").write_text(json.dumps(said))
os._exit(0)
"""


@pytest.mark.distributed
def test_all_ranks_hear_the_same_and_a_failure_changes_nothing(project_root, tmp_path):
    """Written by two ranks; then one cannot write; then one is dead: the first directory stays."""
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(COMMITS.format(place=tmp_path))
    done = torchrun(str(script), [], 2, project_root)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"said-{rank}.json").read_text()) for rank in range(2))
    assert first[0] is second[0] is None
    assert first[1] == second[1]
    assert first[1].startswith("rank 1 on ")
    assert first[1].endswith("File name too long")
    assert "no heartbeat from rank 1" in first[2]
    names = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert names == {"checkpoint"}, "something half-written was left"
    for rank in range(2):
        tensors = load_file(tmp_path / "checkpoint" / "parts" / f"rank-{rank}.safetensors")
        assert tensors["numbers"].tolist() == [1.0] * 4
    assert set(json.loads((tmp_path / "checkpoint" / "complete.json").read_text())) == {
        "parts/rank-0.safetensors",
        "parts/rank-1.safetensors",
    }


def failures(metrics: Path) -> list[tuple[int, float]]:
    """Step at which the outcome of a save was known, and whether it had failed."""
    if not metrics.exists():
        return []
    entries = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")]
    return [(entry["step"], entry["save_failed"]) for entry in entries if "save_failed" in entry]


def test_a_full_disk_costs_no_checkpoint_and_no_run(runner):
    """Rank 1 may write 100 kB files only, then any, then 100 kB again, until a signal ends it."""
    name, save_dir = "full", runner.workspace / "full" / "save"
    options = ("--num_epochs", "4000", "--save_interval", "10", "--skip_save_each_epoch", "--keep_last", "2")
    process = runner.start(runner.command(name, *BATCH, *options))
    metrics = runner.workspace / name / "logs" / "metrics.jsonl"
    wait_until(lambda: len(failures(metrics)) >= 2, process)
    rank = ranks_of(process)[1]
    unlimited = rank.rlimit(psutil.RLIMIT_FSIZE)
    for is_last in (False, True):
        rank.rlimit(psutil.RLIMIT_FSIZE, (100_000, unlimited[1]))
        known = len(failures(metrics))
        wait_until(lambda known=known: 1.0 in dict(failures(metrics)[known:]).values(), process)
        before = {path.name for path in save_dir.glob("epoch-*")}
        assert len(before) == 2
        known = len(failures(metrics))
        wait_until(lambda known=known: len(failures(metrics)) > known, process)
        (former, _), (latter, _) = failures(metrics)[-2:]
        assert latter - former < 10, "it was not tried again before the next interval"
        assert {path.name for path in save_dir.glob("epoch-*")} == before, "a failed save cost a checkpoint"
        if not is_last:
            rank.rlimit(psutil.RLIMIT_FSIZE, unlimited)
            wait_until(lambda: failures(metrics)[-1][1] == 0.0, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "COULD NOT BE SAVED: rank 1 on" in output
    assert "File too large" in output
    newest = max(before, key=lambda path: int(path.rpartition("-")[2]))
    assert f"What was trained after {newest} is lost" in output
    assert {path.name for path in save_dir.iterdir()} - {".lock"} == before
