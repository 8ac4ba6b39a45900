"""On two GPUs: a torchrun for each, as on two hosts; one of them is killed with all its processes,
and the other ends and says so.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_other_host_ends_within_a_minute(runner, project_root):
    options = ("--num_epochs", "4000", "--max_steps", "100000", "--save_interval", "50000", "--skip_save_each_epoch")
    words = runner.command("two", *options, "--mixed_precision", "bf16")
    outputs = [runner.workspace / f"node-{node}.txt" for node in range(2)]
    launchers = []
    for node, output in enumerate(outputs):
        head = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            f"--node_rank={node}",
            "--nproc_per_node=1",
        ]
        head += ["--master_addr=127.0.0.1", "--master_port=30115", "train.py"]
        with output.open("w") as file:
            launchers.append(
                subprocess.Popen(
                    [*head, *words],
                    cwd=project_root,
                    env={**os.environ, "CUDA_VISIBLE_DEVICES": str(node)},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                )
            )
    try:
        metrics = runner.workspace / "two" / "logs" / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while not (metrics.exists() and len(metrics.read_text().splitlines()) > 20):
            assert all(launcher.poll() is None for launcher in launchers), (
                outputs[0].read_text() + outputs[1].read_text()
            )
            assert time.monotonic() < deadline
            time.sleep(0.2)
        family = [launchers[1].pid, *(child.pid for child in psutil.Process(launchers[1].pid).children(recursive=True))]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):  # a rank dies with its launcher
                os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        launchers[0].wait(timeout=90)
        took_s = time.monotonic() - killed
        said = outputs[0].read_text()
        print(f"ended {took_s:.1f} s after the other host was killed")
        assert took_s < 60
        assert "no heartbeat from" in said, said[-3000:]
    finally:
        for launcher in launchers:
            launcher.kill()  # its ranks die with it
