"""Signals in each phase of a run: what is said, and with which code a process ends."""

import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.support.ranks import start_ranks
from tests.support.waiting import wait_until

PROGRAM = """
import sys, time
from colossal_llama.training import signals
request = signals.REQUEST
with request.listening():
    phase, naps = sys.argv[1], int(sys.argv[2])
    if phase != "IMPORTING":
        request.begin(signals.Phase[phase])
    print("listening", flush=True)
    for _ in range(naps):
        time.sleep(0.1)
    print("received", request.received)
    request.announce_late(request.number)
print("left", flush=True)
time.sleep(0.3)
"""


def start(project_root, phase: str, naps: int = 10, **settings) -> subprocess.Popen[str]:
    """Starts the program, and returns when it listens."""
    variables = {**os.environ, "PYTHONPATH": str(project_root), **settings.pop("env", {})}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **settings}
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, phase, str(naps)], env=variables, **streams)
    if process.stdout is not None:
        assert process.stdout.readline() == "listening\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("phase", ["IMPORTING", "MEETING", "STARTING"])
def test_a_process_that_starts_alone_ends_at_once(project_root, phase, number, code):
    process = start(project_root, phase, 300)
    process.send_signal(number)
    output, errors = process.communicate(timeout=10)
    assert (process.returncode, output) == (code, "")
    assert errors == f"stopped by {number.name} before the first step: there was nothing to save yet\n"


@pytest.mark.parametrize("phase", ["IMPORTING", "MEETING", "STARTING"])
def test_a_rank_that_starts_waits_for_the_others_to_end_with_them(project_root, phase):
    process = start(project_root, phase, 3, env={"WORLD_SIZE": "2"})
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "received True" in output


@pytest.mark.parametrize(("local_rank", "spoken"), [("0", 1), ("1", 0)])
@pytest.mark.parametrize(("phase", "within_s"), [("IMPORTING", 5.0), ("MEETING", 10.0)])
def test_a_rank_of_torchrun_ends_soon(project_root, phase, within_s, local_rank, spoken):
    """Before the ranks have met: torchrun ends the others, of which the first speaks."""
    variables = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "1", "LOCAL_RANK": local_rank}
    process = start(project_root, phase, 300, env=variables)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=within_s)
    assert process.returncode == 143
    assert errors.count("stopped by SIGTERM before the first step") >= spoken


def test_a_signal_is_noted_in_the_last_phase_and_ignored_after_it(project_root):
    process = start(project_root, "FINISHING", 5)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "received True\n"
    assert process.stdout.readline() == "left\n"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert errors.count("came after the last step") == 1


def test_what_another_rank_received_is_said_once_at_the_end(project_root):
    process = start(project_root, "TRAINING", 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 0
    assert errors == "SIGINT came after the last step: all is written, and the run ends as without it\n"


@pytest.mark.parametrize("phase", ["TRAINING", "FINISHING"])
def test_a_second_signal_ends_the_process_and_the_same_at_once_does_not(project_root, phase):
    process = start(project_root, phase, 300)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.1)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "second signal (SIGINT): the process ends at once and saves nothing" in errors


def test_a_terminal_that_is_closed_ends_nothing_early(project_root):
    ours, theirs = pty.openpty()
    process = start(project_root, "TRAINING", 10, stdout=theirs, stderr=theirs, stdin=theirs, start_new_session=True)
    assert os.read(ours, 100).startswith(b"listening")
    os.close(theirs)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    os.close(ours)  # what is printed from here on would be an error
    assert process.wait(timeout=10) == 0


def test_nohup_is_respected(project_root):
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = start(project_root, "TRAINING", 3, preexec_fn=ignore)
    process.send_signal(signal.SIGHUP)
    output, _ = process.communicate(timeout=10)
    assert "received False" in output


@pytest.mark.distributed
def test_a_rank_that_is_killed_is_reported_by_the_other_in_a_sentence(runner, project_root, tmp_path):
    command = runner.command("killed", "--num_epochs", "400", "--skip_save_each_epoch")
    (tmp_path / "output").touch()
    ranks = start_ranks("train.py", command, 2, project_root, str(tmp_path / "output"))
    metrics = runner.workspace / "killed" / "logs" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    ranks[1].kill()
    ranks[0].join(60)
    output = (tmp_path / "output").read_text()
    assert ranks[0].exitcode == 3, output
    assert "Traceback" not in output
    assert len(re.findall(r"^error \(rank 0 on \S+\): the connection to another process", output, re.MULTILINE)) == 1
