"""Comparison of the surveys of hosts: the problems of each host, and how to solve them."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAX_SKEW_S = 2.0
_USED_GPU_MIB = 2048  # more than the driver and an idle process use


@dataclass(frozen=True)
class RunRequirements:
    """Requirements of a run on every host."""

    nproc_per_node: int
    save_dir: Path
    min_free_bytes: int


@dataclass(frozen=True)
class Problem:
    """A failed check of a host.

    Attributes:
        host: its name in the hostfile.
        check: the name of the check.
        text: what is wrong and what to do.
    """

    host: str
    check: str
    text: str


@dataclass(frozen=True)
class HostReport:
    """The survey of a host and the skew of its clock, or the reason why there is none.

    Attributes:
        host: its name in the hostfile.
        survey: what `survey.survey` returned there; empty when it failed.
        skew_s: seconds that its clock is ahead of the master's.
        skew_error_s: maximum error of `skew_s`.
        failure: why there is no survey.
    """

    host: str
    survey: dict[str, Any] = field(default_factory=dict)
    skew_s: float = 0.0
    skew_error_s: float = 0.0
    failure: Problem | None = None


def compare_hosts(reports: list[HostReport], requirements: RunRequirements) -> list[Problem]:
    """Compares the hosts with their majority; in a tie, with the value of the first host.

    Returns:
        All problems, in the order of the hosts.
    """
    problems = [report.failure for report in reports if report.failure]
    surveyed = [report for report in reports if report.survey]
    for check in (_python, _packages, _code, _directories, _save_dir, _gpus, _clock):
        problems += check(surveyed, requirements)
    order = {report.host: position for position, report in enumerate(reports)}
    return sorted(problems, key=lambda problem: order[problem.host])


def _majority(values: list[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _python(reports: list[HostReport], requirements: RunRequirements) -> list[Problem]:
    versions = [report.survey["python"] for report in reports]
    majority = _majority(versions) if versions else None
    return [
        Problem(
            report.host,
            "python",
            f"Python {version}, elsewhere {majority}: run setup_environment.sh there with the same PYTHON",
        )
        for report, version in zip(reports, versions, strict=True)
        if version != majority
    ]


def _packages(reports: list[HostReport], requirements: RunRequirements) -> list[Problem]:
    names = sorted({name for report in reports for name in report.survey["packages"]})
    problems = []
    for report in reports:
        differing = []
        for name in names:
            majority = _majority([other.survey["packages"].get(name) for other in reports])
            here = report.survey["packages"].get(name)
            if here != majority:
                differing.append(f"{name} {here or 'is missing'} (elsewhere {majority or 'it is missing'})")
        if differing:
            problems.append(Problem(report.host, "packages", f"{', '.join(differing)}: run setup_environment.sh there"))
    return problems


def _code(reports: list[HostReport], requirements: RunRequirements) -> list[Problem]:
    majority = _majority([report.survey["code"] for report in reports]) if reports else None
    return [
        Problem(
            report.host,
            "code",
            "this project's files differ from those of the other hosts: check out the same version there",
        )
        for report in reports
        if report.survey["code"] != majority
    ]


def _directories(reports: list[HostReport], requirements: RunRequirements) -> list[Problem]:
    problems = []
    for path in reports[0].survey["directories"] if reports else ():
        there = [report.survey["directories"][path] for report in reports if report.survey["directories"][path]]
        for report in reports:
            here = report.survey["directories"][path]
            if here is None:
                problems.append(Problem(report.host, "data", f"{path} does not exist or is empty: mount or copy it"))
            elif here != _majority(there):
                problems.append(
                    Problem(report.host, "data", f"{path} differs from that of the other hosts: copy it again")
                )
    return problems


def _save_dir(reports: list[HostReport], requirements: RunRequirements) -> list[Problem]:
    problems = []
    for report in reports:
        if not report.survey["sees_mark"]:
            text = (
                f"--save_dir {requirements.save_dir} is not the same directory as on the master: "
                "mount the same file system"
            )
            problems.append(Problem(report.host, "save_dir", text))
        free = report.survey["free_bytes"]
        if free < requirements.min_free_bytes:
            text = (
                f"{free / 2**30:,.1f} GiB free for --save_dir {requirements.save_dir}, "
                f"{requirements.min_free_bytes / 2**30:,.1f} needed: free space"
            )
            problems.append(Problem(report.host, "disk", text))
    return problems


def _gpus(reports: list[HostReport], requirements: RunRequirements) -> list[Problem]:
    problems = [
        Problem(
            report.host, "gpus", f"nvidia-smi fails there ({report.survey['gpu_error']}): repair or restart the driver"
        )
        for report in reports
        if report.survey["gpu_error"]
    ]
    if not any(report.survey["gpus"] for report in reports):
        return problems  # a run on CPUs, unless the driver fails everywhere
    majority = _majority([gpu["name"] for report in reports for gpu in report.survey["gpus"]])
    for report in (report for report in reports if not report.survey["gpu_error"]):
        found = report.survey["gpus"]
        others = sorted({gpu["name"] for gpu in found} - {majority})
        in_use = sorted(float(gpu["memory.used"]) for gpu in found)[: requirements.nproc_per_node]
        if len(found) < requirements.nproc_per_node:
            text = (
                f"{len(found)} GPUs, and --nproc_per_node is {requirements.nproc_per_node}: "
                "check nvidia-smi and the driver there"
            )
            problems.append(Problem(report.host, "gpus", text))
        elif in_use[-1] > _USED_GPU_MIB:
            busy = sum(used > _USED_GPU_MIB for used in in_use)
            text = (
                f"{busy} of the {requirements.nproc_per_node} least used GPUs are in use "
                f"(up to {in_use[-1]:,.0f} MiB): end the processes on them"
            )
            problems.append(Problem(report.host, "gpus", text))
        if others:
            problems.append(
                Problem(
                    report.host,
                    "gpus",
                    f"{', '.join(others)}, elsewhere {majority}: the slowest GPU limits the speed of all",
                )
            )
    return problems


def _clock(reports: list[HostReport], requirements: RunRequirements) -> list[Problem]:
    return [
        Problem(
            report.host,
            "clock",
            f"its clock is {report.skew_s:+.1f} s from the master's: run a time service (chrony, ntp) there",
        )
        for report in reports
        if abs(report.skew_s) - report.skew_error_s > _MAX_SKEW_S
    ]
