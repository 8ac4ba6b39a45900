"""Whether hosts fit together: from their surveys to what is wrong with which, and what to do."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAX_SKEW_S = 2.0
_USED_GPU_MIB = 2048  # more than a driver and an idle process take


@dataclass(frozen=True)
class Needs:
    """What a run will ask of every host."""

    nproc_per_node: int
    save_dir: Path
    min_free_bytes: int


@dataclass(frozen=True)
class Problem:
    """Something wrong with a host: what it is, and what to do."""

    host: str
    check: str
    text: str


@dataclass(frozen=True)
class HostReport:
    """What is known of a host: a survey and its clock, or why there is none."""

    host: str
    survey: dict[str, Any] | None = None
    skew_s: float = 0.0
    skew_error_s: float = 0.0
    failure: Problem | None = None


def compare(reports: list[HostReport], needs: Needs) -> list[Problem]:
    """All problems, host by host; hosts are held against what most of them have, the first of them in a draw."""
    problems = [report.failure for report in reports if report.failure]
    surveyed = [report for report in reports if report.survey]
    for check in (_python, _packages, _code, _directories, _save_dir, _gpus, _clock):
        problems += check(surveyed, needs)
    order = {report.host: position for position, report in enumerate(reports)}
    return sorted(problems, key=lambda problem: order[problem.host])


def _most_have(values: list[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _python(reports: list[HostReport], needs: Needs) -> list[Problem]:
    versions = [report.survey["python"] for report in reports]
    usual = _most_have(versions) if versions else None
    return [
        Problem(
            report.host,
            "python",
            f"Python {version}, elsewhere {usual}: run setup_environment.sh there with the same PYTHON",
        )
        for report, version in zip(reports, versions, strict=True)
        if version != usual
    ]


def _packages(reports: list[HostReport], needs: Needs) -> list[Problem]:
    names = sorted({name for report in reports for name in report.survey["packages"]})
    problems = []
    for report in reports:
        differing = []
        for name in names:
            usual = _most_have([other.survey["packages"].get(name) for other in reports])
            here = report.survey["packages"].get(name)
            if here != usual:
                differing.append(f"{name} {here or 'is missing'} (elsewhere {usual or 'it is missing'})")
        if differing:
            problems.append(Problem(report.host, "packages", f"{', '.join(differing)}: run setup_environment.sh there"))
    return problems


def _code(reports: list[HostReport], needs: Needs) -> list[Problem]:
    usual = _most_have([report.survey["code"] for report in reports]) if reports else None
    return [
        Problem(
            report.host,
            "code",
            "this project's files are not those of the other hosts: check out the same version there",
        )
        for report in reports
        if report.survey["code"] != usual
    ]


def _directories(reports: list[HostReport], needs: Needs) -> list[Problem]:
    problems = []
    for path in reports[0].survey["directories"] if reports else ():
        there = [report.survey["directories"][path] for report in reports if report.survey["directories"][path]]
        for report in reports:
            here = report.survey["directories"][path]
            if here is None:
                problems.append(Problem(report.host, "data", f"{path} is not there or empty: mount or copy it"))
            elif here != _most_have(there):
                problems.append(Problem(report.host, "data", f"{path} is not the same as elsewhere: copy it again"))
    return problems


def _save_dir(reports: list[HostReport], needs: Needs) -> list[Problem]:
    problems = []
    for report in reports:
        if not report.survey["sees_mark"]:
            text = f"--save_dir {needs.save_dir} is not the directory that the master has under that name: mount the same file system"
            problems.append(Problem(report.host, "save_dir", text))
        free = report.survey["free_bytes"]
        if free < needs.min_free_bytes:
            text = f"{free / 2**30:,.1f} GiB free for --save_dir {needs.save_dir}, {needs.min_free_bytes / 2**30:,.1f} needed: make room"
            problems.append(Problem(report.host, "disk", text))
    return problems


def _gpus(reports: list[HostReport], needs: Needs) -> list[Problem]:
    problems = [
        Problem(
            report.host, "gpus", f"nvidia-smi fails there ({report.survey['gpu_error']}): mend or restart the driver"
        )
        for report in reports
        if report.survey["gpu_error"]
    ]
    if not any(report.survey["gpus"] for report in reports):
        return problems  # else a run on CPUs
    usual = _most_have([gpu["name"] for report in reports for gpu in report.survey["gpus"]])
    for report in (report for report in reports if not report.survey["gpu_error"]):
        found = report.survey["gpus"]
        others = sorted({gpu["name"] for gpu in found} - {usual})
        in_use = sorted(float(gpu["memory.used"]) for gpu in found)[: needs.nproc_per_node]
        if len(found) < needs.nproc_per_node:
            text = f"{len(found)} GPUs, --nproc_per_node {needs.nproc_per_node} asked for: look at nvidia-smi and the driver there"
            problems.append(Problem(report.host, "gpus", text))
        elif in_use[-1] > _USED_GPU_MIB:
            busy = sum(used > _USED_GPU_MIB for used in in_use)
            text = f"{busy} of the {needs.nproc_per_node} least used GPUs are taken (up to {in_use[-1]:,.0f} MiB): end what runs on them"
            problems.append(Problem(report.host, "gpus", text))
        if others:
            problems.append(
                Problem(
                    report.host, "gpus", f"{', '.join(others)}, elsewhere {usual}: the slowest sets the pace of all"
                )
            )
    return problems


def _clock(reports: list[HostReport], needs: Needs) -> list[Problem]:
    return [
        Problem(
            report.host,
            "clock",
            f"its clock is {report.skew_s:+.1f} s from the master's: start a time service (chrony, ntp) there",
        )
        for report in reports
        if abs(report.skew_s) - report.skew_error_s > _MAX_SKEW_S
    ]
