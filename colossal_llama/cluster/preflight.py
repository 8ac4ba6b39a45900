"""Checks every host of a hostfile before a long run: names the broken one and what to do (exit code 1), or says that all is well.

python colossal_llama/cluster/preflight.py --hostfile hostfile --nproc_per_node 8 --pretrained model --dataset data/arrow/part-0000* --save_dir checkpoints
"""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from colossal_llama.cluster.host_checks import HostReport, Needs, Problem, compare
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import CollectingArgumentParser, existing_file, number_in_range
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import run_main

# Half-precision weights take 2 bytes a parameter; with them two Adam moments and master weights 14.
_CHECKPOINT_OVER_WEIGHTS = 7


def main() -> None:
    """Ask every host, compare, try an all-reduce, tell."""
    options = parse_arguments()
    from colossal_llama.cluster.probe import Cluster, ask_all, try_all_reduce
    from colossal_llama.cluster.ssh import read_hostfile

    cluster = Cluster(read_hostfile(options.hostfile), options.ssh_port, options.timeout_s, options.connect_timeout_s)
    print(f"asking {len(cluster.hosts)} hosts …", flush=True)
    directories = [path.absolute() for path in (options.pretrained, *options.dataset) if path]
    reports = ask_all(cluster, directories, options.save_dir)
    needs = Needs(options.nproc_per_node, options.save_dir, needed_bytes(options))
    problems = compare(reports, needs)
    measured = None
    if not problems and options.all_reduce_mib:
        size_mib, port = options.all_reduce_mib, options.master_port
        measured, failures = try_all_reduce(cluster, options.nproc_per_node, port, size_mib)
        problems += failures
    print(overview(reports, problems))
    if measured:
        print(
            f"all-reduce of {measured['size_bytes'] / 2**20:.0f} MiB over {measured['processes']} processes "
            f"({measured['device']}): "
            f"{measured['seconds'] * 1000:.1f} ms, bus bandwidth {measured['bus_bytes_per_s'] / 1e9:.2f} GB/s"
        )
    record = {"time_s": round(time.time(), 3), "hosts": [asdict(report) for report in reports], "all_reduce": measured}
    write_json(options.record, {**record, "problems": [asdict(problem) for problem in problems]})
    for problem in problems:
        print(f"error: {problem.host}: {problem.text}", file=sys.stderr)
    print(f"{len(problems)} problems; the record is {options.record}")
    raise SystemExit(1 if problems else 0)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = CollectingArgumentParser(
        prog="preflight.py", description="Check every host of a hostfile before a long run."
    )
    parser.add_argument(
        "--hostfile", type=existing_file, default=Path("hostfile"), metavar="FILE", help="a host name a line"
    )
    parser.add_argument(
        "--nproc_per_node", type=number_in_range(int, 1), default=8, metavar="N", help="processes (GPUs) a host"
    )
    parser.add_argument("--pretrained", type=Path, metavar="DIR", help="the model that will be trained")
    parser.add_argument("--dataset", type=Path, nargs="+", default=(), metavar="PART", help="prepared part directories")
    parser.add_argument(
        "--save_dir", type=Path, default=Path("checkpoint_dir"), metavar="DIR", help="where checkpoints go"
    )
    parser.add_argument(
        "--min_free_gib",
        type=number_in_range(float, 0),
        metavar="GIB",
        help="room needed in --save_dir (default: one checkpoint, seven times the weights of --pretrained)",
    )
    parser.add_argument(
        "--ssh_port", type=number_in_range(int, 1, 65535), metavar="PORT", help="as colossalai run's --ssh-port"
    )
    parser.add_argument(
        "--master_port", type=number_in_range(int, 1, 65535), default=30013, metavar="PORT", help="as colossalai run's"
    )
    parser.add_argument(
        "--all_reduce_mib",
        type=number_in_range(float, 0),
        default=64.0,
        metavar="MIB",
        help="tensor that is summed over all; 0: none",
    )
    parser.add_argument(
        "--timeout_s", type=number_in_range(float, 1), default=120.0, metavar="S", help="for each command on a host"
    )
    parser.add_argument(
        "--connect_timeout_s", type=number_in_range(float, 1), default=10.0, metavar="S", help="for ssh to answer"
    )
    parser.add_argument(
        "--record", type=Path, default=Path("preflight.json"), metavar="FILE", help="all that was found, as JSON"
    )
    options = parser.parse_args()
    if options.record.is_dir() or not options.record.absolute().parent.is_dir():
        parser.problem(f"--record: {options.record} is a directory, or lies in one that does not exist: name a file")
    parser.finish()
    return options


def needed_bytes(options: argparse.Namespace) -> int:
    """Room that --save_dir must have."""
    if options.min_free_gib is not None:
        return int(options.min_free_gib * 2**30)
    if options.pretrained is None:
        return 0
    weights = [path for pattern in ("*.safetensors", "*.bin") for path in options.pretrained.glob(pattern)]
    return _CHECKPOINT_OVER_WEIGHTS * sum(path.stat().st_size for path in weights)


def overview(reports: list[HostReport], problems: list[Problem]) -> str:
    """A row for each host: what it has, and which checks it failed."""
    rows = []
    for report in reports:
        failed = sorted({problem.check for problem in problems if problem.host == report.host})
        verdict = "broken: " + ", ".join(failed) if failed else "ok"
        if report.survey is None:
            rows.append([report.host, verdict, "", "", "", "", "", ""])
            continue
        found, names = report.survey, sorted({gpu["name"] for gpu in report.survey["gpus"]})
        shown_gpus = f"{len(found['gpus'])} x {', '.join(names)}" if names else "none"
        seen = sum(value is not None for value in found["directories"].values())
        directories = f"{seen} of {len(found['directories'])}"
        free, skew = f"{found['free_bytes'] / 2**30:,.0f} GiB", f"{report.skew_s:+.2f} s"
        torch_version = found["packages"]["torch"] or "none"
        rows.append([report.host, verdict, found["python"], torch_version, directories, free, shown_gpus, skew])
    return table(["host", "verdict", "Python", "torch", "directories", "free", "GPUs", "clock"], rows)


if __name__ == "__main__":
    run_main(main)
