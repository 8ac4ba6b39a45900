"""Surveys and a test all-reduce on all hosts of a cluster."""

import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.cluster.host_checks import HostReport, Problem
from colossal_llama.cluster.ssh import HostUnreachable, Output, RemoteShell, run_on_all
from colossal_llama.utils.atomic_io import existing_ancestor
from colossal_llama.utils.environment import IMPORT_ROOT
from colossal_llama.utils.errors import UserError

_FORWARDED_VARIABLES = (
    "PATH",
    "LD_LIBRARY_PATH",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "NCCL_IB_DISABLE",
    "OMP_NUM_THREADS",
)
"""Environment variables of this process that commands on the hosts get, too."""


@dataclass(frozen=True)
class Cluster:
    """The hosts and the settings of the connections to them.

    Attributes:
        hosts: their names, the master first.
        ssh_port: None: ssh's default or that of ~/.ssh/config.
        timeout_s: for each command on a host.
        connect_timeout_s: for each connection.
    """

    hosts: list[str]
    ssh_port: int | None
    timeout_s: float
    connect_timeout_s: float

    def shell(self, host: str) -> RemoteShell:
        """Returns an ssh connection to a host, with the project as its working directory."""
        variables = {name: os.environ[name] for name in _FORWARDED_VARIABLES if os.environ.get(name)}
        return RemoteShell(host, self.ssh_port, IMPORT_ROOT, variables, self.connect_timeout_s)


def survey_all(cluster: Cluster, directories: Sequence[Path], save_dir: Path) -> list[HostReport]:
    """Surveys all hosts at once.

    Meanwhile a file lies next to the checkpoints: a host that does not see it has not mounted the
    same file system.

    Args:
        cluster: the hosts.
        directories: to be fingerprinted, absolute: model and parts.
        save_dir: where checkpoints will be written; it need not exist.

    Raises:
        UserError: this host cannot write there.
    """
    directory = existing_ancestor(save_dir)
    mark = directory / f".preflight-{os.getpid()}-{time.time_ns()}"
    try:
        mark.touch()
    except OSError as error:
        raise UserError(f"--save_dir: {directory} cannot be written to: {error.strerror}") from None
    command = [sys.executable, "colossal_llama/cluster/survey.py", "--save_dir", str(save_dir.absolute())]
    command += ["--mark", str(mark), "--directories", *map(str, directories)]
    try:
        return list(run_on_all(cluster.hosts, lambda host: _survey_host(cluster, host, command)).values())
    finally:
        mark.unlink()


def _survey_host(cluster: Cluster, host: str, command: list[str]) -> HostReport:
    try:
        with cluster.shell(host) as remote:
            skew_s, skew_error_s = remote.clock_skew_s()
            output = remote.run(command, cluster.timeout_s)
    except HostUnreachable as error:
        return HostReport(host, failure=Problem(host, "ssh", str(error)))
    found = _last_object(output.stdout)
    if output.code or found is None:
        last_line = (output.stderr.strip() or output.stdout.strip() or "nothing").splitlines()[-1]
        text = (
            f"the survey ended with code {output.code} and printed: {last_line}. This project and its "
            f"environment must be there under the same paths ({IMPORT_ROOT}, {sys.executable})"
        )
        return HostReport(host, skew_s=skew_s, skew_error_s=skew_error_s, failure=Problem(host, "python", text))
    return HostReport(host, found, skew_s, skew_error_s)


def try_all_reduce(
    cluster: Cluster, processes_per_host: int, master_port: int, size_mib: float
) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Runs an all-reduce over all processes of all hosts.

    Returns:
        What all_reduce_check.py printed, None if it failed; and the problem of each failed host.
    """
    hosts = cluster.hosts
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(hosts)}"]
    torchrun += [f"--nproc_per_node={processes_per_host}", f"--master_addr={hosts[0]}", f"--master_port={master_port}"]

    def all_reduce_on(host: str) -> Output:
        """Runs the processes of one host."""
        command = [*torchrun, f"--node_rank={hosts.index(host)}", "colossal_llama/cluster/all_reduce_check.py"]
        try:
            with cluster.shell(host) as remote:
                return remote.run([*command, "--size_mib", str(size_mib)], cluster.timeout_s)
        except HostUnreachable as error:
            return Output(255, "", f"Error: {error}")

    outputs = run_on_all(hosts, all_reduce_on)
    advice = (
        "can the hosts connect to each other on all ports, over the interface that NCCL_SOCKET_IFNAME or "
        "GLOO_SOCKET_IFNAME names?"
    )
    failures = [
        Problem(host, "all_reduce", f"the all-reduce failed ({_reason(output)}): {advice}")
        for host, output in outputs.items()
        if output.code
    ]
    measured = _last_object(outputs[hosts[0]].stdout)
    if measured is None and not failures:
        failures = [Problem(hosts[0], "all_reduce", f"the all-reduce printed no result: {advice}")]
    return (None, failures) if failures else (measured, [])


def _last_object(output: str) -> dict[str, Any] | None:
    """The last line that is a JSON object; start-up files of a shell may print others."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            with suppress(json.JSONDecodeError):
                return json.loads(line)
    return None


def _reason(output: Output) -> str:
    errors = [line for line in output.stderr.splitlines() if "Error" in line]
    return errors[0].strip() if errors else f"code {output.code}"
