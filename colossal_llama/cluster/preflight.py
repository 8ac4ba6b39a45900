r"""Checks every host of a hostfile before a long run.

The output names each problem of a host and what to do (exit code 1), or that all hosts are ready:

    python colossal_llama/cluster/preflight.py --hostfile hostfile --nproc_per_node 8 \
        --pretrained model --dataset data/arrow --save_dir checkpoints
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.cluster.host_checks import HostReport, Problem, RunRequirements, compare_hosts
from colossal_llama.cluster.hostfile import read_hostfile
from colossal_llama.readers.input_paths import GatherPaths, local_paths
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import CollectingArgumentParser, number_in_range
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import run_main
from colossal_llama.utils.hub.names import ModelName, path_or_name
from colossal_llama.utils.output_file import output_file_problem

_RECORD_BEGINNING = b'{\n  "time_s": '
# Half-precision weights take 2 bytes a parameter, with master weights and two Adam moments 14.
_CHECKPOINT_BYTES_PER_WEIGHT_BYTE = 7


def main() -> None:
    """Surveys every host, compares the surveys, tries an all-reduce, and reports."""
    options = parse_arguments()
    hosts = read_hostfile(options.hostfile)
    from colossal_llama.cluster.probe import Cluster, survey_all, try_all_reduce

    cluster = Cluster(hosts, options.ssh_port, options.timeout_s, options.connect_timeout_s)
    print(f"checking {len(cluster.hosts)} hosts …", flush=True)
    if isinstance(options.pretrained, ModelName):
        print(f"--pretrained {options.pretrained} is a name: each host downloads it when the run begins", flush=True)
    paths = [path for path in (options.pretrained, *options.dataset) if isinstance(path, Path)]
    directories = [path.absolute() for path in paths]
    reports = survey_all(cluster, directories, options.save_dir)
    problems = compare_hosts(
        reports, RunRequirements(options.nproc_per_node, options.save_dir, required_bytes(options))
    )
    measured = None
    if not problems and options.all_reduce_mib:
        measured, problems = try_all_reduce(
            cluster, options.nproc_per_node, options.master_port, options.all_reduce_mib
        )
    print(overview(reports, problems))
    if measured:
        print(all_reduce_line(measured))
    write_record(options.record, reports, measured, problems)
    for problem in problems:
        print(f"error: {problem.host}: {problem.text}", file=sys.stderr)
    print(f"{len(problems)} problems; the record is {options.record}")
    raise SystemExit(1 if problems else 0)


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = CollectingArgumentParser(
        prog="preflight.py", description="Check every host of a hostfile before a long run."
    )
    parser.add_argument(
        "--hostfile", type=Path, default=Path("hostfile"), metavar="FILE", help="one host name on each line"
    )
    parser.add_argument(
        "--nproc_per_node", type=number_in_range(int, 1), default=8, metavar="N", help="processes (GPUs) on each host"
    )
    parser.add_argument(
        "--pretrained", type=path_or_name, metavar="DIR", help="model to be trained; a name is not looked up"
    )
    parser.add_argument(
        "--dataset",
        type=local_paths,
        action=GatherPaths,
        nargs="+",
        default=(),
        metavar="DIR",
        help="data to be trained on, given as for train.py; every part is compared on all hosts",
    )
    parser.add_argument(
        "--save_dir", type=Path, default=Path("checkpoint_dir"), metavar="DIR", help="where checkpoints will be written"
    )
    parser.add_argument(
        "--min_free_gib",
        type=number_in_range(float, 0),
        metavar="GIB",
        help="free space needed in --save_dir (default: one checkpoint, seven times the weights of --pretrained)",
    )
    parser.add_argument(
        "--ssh_port", type=number_in_range(int, 1, 65535), metavar="PORT", help="as --ssh-port of colossalai run"
    )
    parser.add_argument(
        "--master_port",
        type=number_in_range(int, 1, 65535),
        default=30013,
        metavar="PORT",
        help="as that of colossalai run",
    )
    parser.add_argument(
        "--all_reduce_mib",
        type=number_in_range(float, 0),
        default=64.0,
        metavar="MIB",
        help="size of the tensor of the all-reduce; 0: no all-reduce",
    )
    parser.add_argument(
        "--timeout_s", type=number_in_range(float, 1), default=120.0, metavar="S", help="for each command on a host"
    )
    parser.add_argument(
        "--connect_timeout_s", type=number_in_range(float, 1), default=10.0, metavar="S", help="for each ssh connection"
    )
    parser.add_argument(
        "--record", type=Path, default=Path("preflight.json"), metavar="FILE", help="surveys and problems as JSON"
    )
    options = parser.parse_args()
    if problem := output_file_problem(options.record, _RECORD_BEGINNING):
        parser.problem(f"--record {problem}")
    options.dataset = [directory_of_parts(path) for path in options.dataset]
    parser.finish()
    return options


def directory_of_parts(path: Path) -> Path:
    """Returns the directory of `--dataset` that all hosts must have alike, with all that is in it.

    Of an output directory these are the parts alone: hosts need neither its cache nor its records.
    """
    return path / "arrow" if (path / "arrow").is_dir() else path


def required_bytes(options: argparse.Namespace) -> int:
    """Returns the free space that --save_dir must have."""
    if options.min_free_gib is not None:
        return int(options.min_free_gib * 2**30)
    if not isinstance(options.pretrained, Path):
        return 0
    weights = [path for pattern in ("*.safetensors", "*.bin") for path in options.pretrained.glob(pattern)]
    return _CHECKPOINT_BYTES_PER_WEIGHT_BYTE * sum(path.stat().st_size for path in weights if path.is_file())


def all_reduce_line(measured: dict[str, Any]) -> str:
    """Formats the result of all_reduce_check.py."""
    return (
        f"all-reduce of {measured['size_bytes'] / 2**20:.0f} MiB over {measured['processes']} processes "
        f"({measured['device']}): {measured['seconds'] * 1000:.1f} ms, "
        f"bus bandwidth {measured['bus_bytes_per_s'] / 1e9:.2f} GB/s"
    )


def write_record(
    path: Path, reports: list[HostReport], measured: dict[str, Any] | None, problems: list[Problem]
) -> None:
    """Writes surveys, the all-reduce and problems as JSON; a host without a survey has null."""
    hosts = [{**asdict(report), "survey": report.survey or None} for report in reports]
    record = {"time_s": round(time.time(), 3), "hosts": hosts, "all_reduce": measured}
    write_json(path, {**record, "problems": [asdict(problem) for problem in problems]})


def overview(reports: list[HostReport], problems: list[Problem]) -> str:
    """Formats a table with a row for each host: its survey in short, and the checks it failed."""
    rows = []
    for report in reports:
        failed = sorted({problem.check for problem in problems if problem.host == report.host})
        verdict = "broken: " + ", ".join(failed) if failed else "ok"
        if not report.survey:
            rows.append([report.host, verdict, "", "", "", "", "", ""])
            continue
        found, names = report.survey, sorted({gpu["name"] for gpu in report.survey["gpus"]})
        shown_gpus = f"{len(found['gpus'])} x {', '.join(names)}" if names else "none"
        seen = sum(value is not None for value in found["directories"].values())
        directories = f"{seen} of {len(found['directories'])}"
        free, skew = f"{found['free_bytes'] / 2**30:,.0f} GiB", f"{report.skew_s:+.2f} s"
        torch_version = found["packages"].get("torch") or "none"
        rows.append([report.host, verdict, found["python"], torch_version, directories, free, shown_gpus, skew])
    return table(["host", "verdict", "Python", "torch", "directories", "free", "GPUs", "clock"], rows)


if __name__ == "__main__":
    run_main(main)
