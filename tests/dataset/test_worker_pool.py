"""The worker pool: results in order, and a killed process never hangs or silences a run."""

import multiprocessing.process
import os
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from colossal_llama.dataset.prepare.worker_pool import ProgressReports, shared_flag, start_fork_server, worker_pool
from colossal_llama.utils.errors import UserError

KILLED = "a worker process was killed"


# Run by workers, which import this module.
def power(base, exponent):
    time.sleep(0.002 * (exponent % 3))  # results arrive in another order than the tasks'
    return base**exponent


def process_id(state, task):
    time.sleep(0.05)
    return os.getpid()


def wait_or_die(state, task):
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def fail(state, task):
    raise UserError([f"{state} is wrong", f"{task} too"])


def report_and_square(reports, task):
    for done in range(3):
        reports.report((task, done))
    return task * task


def count_up(flag, task):
    flag.value = task
    return flag.value


class DiesAsItIsUnpickled:
    """A state that kills the worker which receives it."""

    def __init__(self):
        self.content = bytes(1 << 24)  # more than a pipe holds: the worker dies while it is sent

    def __reduce__(self):
        return kill_this_process, (self.content,)


def kill_this_process(content):
    os.kill(os.getpid(), signal.SIGKILL)


class EndsTheParent:
    """A state that ends the worker's parent while the worker unpickles it."""

    def __reduce__(self):
        return terminate_parent, ()


def terminate_parent():
    os.kill(multiprocessing.parent_process().pid, signal.SIGTERM)
    time.sleep(0.5)


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_until_ended(pids) -> None:
    deadline = time.monotonic() + 10
    while not all(map(has_ended, pids)):
        assert time.monotonic() < deadline, "a worker is left"
        time.sleep(0.01)


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_tasks(num_workers):
    with worker_pool(num_workers, 3) as pool:
        for count in (0, 1, 40):
            assert list(pool.map(power, range(count))) == [3**exponent for exponent in range(count)]


def test_workers_are_started_as_they_are_needed_and_end_with_the_block():
    with worker_pool(8, None) as pool:
        few = set(pool.map(process_id, range(2)))
        assert len(few) == 2
    wait_until_ended(few)


def run_until_killed(num_workers, use_pool, message=KILLED) -> UserError:
    """The error of a pool that is used by a function, which returns the workers' process ids."""
    begin = time.monotonic()
    pids = []

    def run():
        with worker_pool(num_workers, "x") as pool:
            pids.extend(pool.map(process_id, range(num_workers)))
            use_pool(pool, pids)

    with pytest.raises(UserError, match=message) as raised:
        run()
    assert time.monotonic() - begin < 20
    wait_until_ended(pids)
    return raised.value


def test_an_error_of_a_task_is_raised_here_with_the_workers_traceback_and_ends_the_others():
    error = run_until_killed(2, lambda pool, _: list(pool.map(fail, [7])), r"x is wrong\n7 too")
    assert "in fail" in error.__notes__[0]


def test_workers_share_a_flag():
    flag = shared_flag()
    with worker_pool(2, flag) as pool:
        assert list(pool.map(count_up, [5])) == [5]
    assert flag.value == 5


@pytest.mark.parametrize("num_workers", [1, 2])
def test_reports_from_within_tasks_come_in_their_order_and_are_no_results(num_workers):
    heard = []
    with worker_pool(num_workers, ProgressReports(heard.append)) as pool:
        assert list(pool.map(report_and_square, range(5))) == [0, 1, 4, 9, 16]
    assert [[done for task, done in heard if task == number] for number in range(5)] == [[0, 1, 2]] * 5


def test_a_worker_killed_in_work_ends_the_others():
    run_until_killed(3, lambda pool, _: list(pool.map(wait_or_die, ["wait", "wait", "die"])))


def test_a_worker_killed_in_idleness_is_noticed_while_another_works():
    def use_pool(pool, pids):
        for _ in pool.map(process_id, range(400)):
            if not any(map(has_ended, pids)):
                os.kill(max(pids), signal.SIGKILL)

    run_until_killed(2, use_pool)


def test_a_worker_killed_at_the_end_is_noticed():
    run_until_killed(2, lambda _, pids: os.kill(pids[0], signal.SIGKILL))


def test_a_worker_killed_at_its_start_is_noticed():
    with pytest.raises(UserError, match=KILLED), worker_pool(2, DiesAsItIsUnpickled()) as pool:
        list(pool.map(process_id, range(2)))


@pytest.mark.parametrize("moment", ["in work", "at the end"])
def test_a_killed_fork_server_ends_the_workers(moment):
    server = []

    def use_pool(pool, _):
        server.append(forkserver._forkserver._forkserver_pid)
        os.kill(server[0], signal.SIGKILL)
        if moment == "in work":
            list(pool.map(process_id, range(100)))

    run_until_killed(2, use_pool)
    wait_until_ended(server)
    with worker_pool(2, 2) as pool:  # another server is started
        assert list(pool.map(power, range(5))) == [1, 2, 4, 8, 16]


def test_a_long_temporary_directory_does_not_keep_the_server_from_starting(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    forkserver._forkserver._stop()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    config = multiprocessing.process.current_process()._config  # which remembers the directory
    monkeypatch.delitem(config, "tempdir", raising=False)
    with worker_pool(2, 2) as pool:
        assert list(pool.map(power, range(3))) == [1, 2, 4]
    assert tempfile.tempdir == str(long)


def test_without_a_temporary_directory_the_remedy_is_named(monkeypatch):
    forkserver._forkserver._stop()
    monkeypatch.setattr(os, "access", lambda *_: False)
    before = dict(os.environ)
    with pytest.raises(UserError, match="set TMPDIR to a directory that can be written to"):
        start_fork_server(2)
    assert os.environ == before


def test_a_limit_of_open_files_is_raised_or_named():
    """The soft limit is the process's own; a hard one is named, with a number that fits."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (30, 40))\n"
        "from colossal_llama.dataset.prepare.worker_pool import _allow_open_files, start_fork_server\n"
        "from colossal_llama.utils.errors import run_main\n"
        "_allow_open_files(34); print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "run_main(lambda: start_fork_server(9))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "(34, 40)\n")
    assert done.stderr == (
        "error: this process may open 40 files at once, too few for its worker processes: raise the limit "
        "(ulimit -n 1024), or give --num_workers 8\n"
    )


def test_a_worker_that_starts_while_its_parent_is_ended_prints_no_traceback(project_root):
    script = """
        from colossal_llama.dataset.prepare.worker_pool import worker_pool
        from tests.dataset.test_worker_pool import EndsTheParent, power
        with worker_pool(2, [EndsTheParent(), bytes(1 << 24)]) as pool:
            print(list(pool.map(power, range(9))))
    """
    # The pipe of stderr ends when the last process has ended.
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in script.splitlines())],
        cwd=project_root, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGTERM, "", "")
