"""Two hosts, each with an sshd, name and mounts of its own (tests/hosts.py): trained on, checked, unplugged."""

from pathlib import Path

import hosts as our_hosts
import pytest


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """node-1 and node-2, running."""
    reason = our_hosts.why_no_hosts()
    if reason:
        pytest.skip(reason)
    made = our_hosts.make_hosts(tmp_path_factory.mktemp("hosts"))
    yield made
    for host in made.values():
        host.pull_the_plug()


@pytest.fixture
def hostfile(tmp_path):
    path = tmp_path / "hostfile"
    path.write_text("".join(f"{name}\n" for name in our_hosts.NAMES))
    return path


def colossalai_run(hostfile: Path, words: list[str], port: int = 30113) -> list[str]:
    head = ["colossalai", "run", "--nproc_per_node", "1", "--hostfile", str(hostfile), "--master_port", str(port)]
    return [*head, "train.py", *words]


def test_a_run_over_two_hosts(cluster, hostfile, runner):
    done = cluster["node-1"].run(colossalai_run(hostfile, runner.command("both", "--max_steps", "3")))
    print(done.stdout[-6000:], done.stderr[-6000:])
    assert done.returncode == 0
