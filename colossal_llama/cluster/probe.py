"""Asks every host of a cluster what it has, and lets all of them sum a tensor."""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.cluster.host_checks import HostReport, Problem
from colossal_llama.cluster.ssh import Output, Shell, Unreachable, on_all
from colossal_llama.utils.atomic_io import existing_ancestor
from colossal_llama.utils.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parents[2]
_PASSED_ON = (
    "PATH",
    "LD_LIBRARY_PATH",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "NCCL_IB_DISABLE",
    "OMP_NUM_THREADS",
)
"""Variables of this process that a command on a host gets."""


@dataclass(frozen=True)
class Cluster:
    """The hosts, and how they are reached."""

    hosts: list[str]
    """The master first."""
    ssh_port: int | None
    timeout_s: float
    """For each command on a host."""
    connect_timeout_s: float

    def shell(self, host: str) -> Shell:
        """Ssh to a host, in this project's directory, with the environment that matters."""
        variables = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
        return Shell(host, self.ssh_port, PROJECT_ROOT, variables, self.connect_timeout_s)


def ask_all(cluster: Cluster, directories: Sequence[Path], save_dir: Path) -> list[HostReport]:
    """A report of each host; a file is put beside the checkpoints meanwhile, to see who sees it.

    Args:
        cluster: the hosts.
        directories: to be fingerprinted, absolute: model and parts.
        save_dir: where checkpoints will go; it need not exist.

    Raises:
        UserError: nothing can be written there from here.
    """
    place = existing_ancestor(save_dir)
    mark = place / f".preflight-{os.getpid()}-{time.time_ns()}"
    try:
        mark.touch()
    except OSError as error:
        raise UserError(f"--save_dir: {place} cannot be written: {error.strerror}") from None
    words = [sys.executable, "colossal_llama/cluster/survey.py", "--save_dir", str(save_dir.absolute())]
    words += ["--mark", str(mark), "--directories", *map(str, directories)]
    try:
        return list(on_all(cluster.hosts, lambda host: _ask(cluster, host, words)).values())
    finally:
        mark.unlink()


def _ask(cluster: Cluster, host: str, words: list[str]) -> HostReport:
    """What one host says of itself."""
    try:
        with cluster.shell(host) as remote:
            skew_s, skew_error_s = remote.clock_skew_s()
            output = remote.run(words, cluster.timeout_s)
    except Unreachable as error:
        return HostReport(host, failure=Problem(host, "ssh", str(error)))
    if output.code:
        said = (output.stderr.strip() or output.stdout.strip() or "nothing").splitlines()[-1]
        text = (
            f"the survey ended with code {output.code} and said: {said}. This project and its environment must be "
            "there under the same "
            f"paths ({PROJECT_ROOT}, {sys.executable})"
        )
        return HostReport(host, skew_s=skew_s, skew_error_s=skew_error_s, failure=Problem(host, "python", text))
    return HostReport(host, json.loads(output.stdout.splitlines()[-1]), skew_s, skew_error_s)


def try_all_reduce(
    cluster: Cluster, processes_per_host: int, master_port: int, size_mib: float
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Sums a tensor over all processes of all hosts; what was measured (all_reduce.py prints it), or which hosts failed."""
    hosts = cluster.hosts
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(hosts)}"]
    torchrun += [f"--nproc_per_node={processes_per_host}", f"--master_addr={hosts[0]}", f"--master_port={master_port}"]

    def reduce_on(host: str) -> Output:
        words = [*torchrun, f"--node_rank={hosts.index(host)}", "colossal_llama/cluster/all_reduce_check.py"]
        with cluster.shell(host) as remote:
            return remote.run([*words, "--size_mib", str(size_mib)], cluster.timeout_s)

    outputs = on_all(hosts, reduce_on)
    advice = "do the hosts reach each other on all ports, and by the interface that NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME names?"
    failures = [
        Problem(host, "all_reduce", f"the all-reduce failed ({_reason(output)}): {advice}")
        for host, output in outputs.items()
        if output.code
    ]
    if failures:
        return None, failures
    return json.loads(outputs[hosts[0]].stdout.splitlines()[-1]), []


def _reason(output: Output) -> str:
    errors = [line for line in output.stderr.splitlines() if "Error" in line]
    return errors[0].strip() if errors else f"code {output.code}"
