"""Host names: what is one, what is not, and what cannot be resolved."""

import socket
import subprocess
import sys

import pytest

from colossal_llama.cluster.hostfile import host_problem, read_hostfile, resolution_problems, ssh_problems
from colossal_llama.utils.errors import UserError


@pytest.mark.parametrize("name", ["node-1", "gpu007.cluster.local", "10.0.0.7", "::1", "fe80::1%eth0", "a_b"])
def test_names_and_addresses(name):
    assert host_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        *("-oProxyCommand=touch x", "node-1:22", "x:y", "user@node-1", "node 1", "# hosts", "node;id", "$(id)", "`id`"),
        *("node-1 slots=8", "a'b", 'a"b', "nœud", "[node", "node*", ".", "a\tb", "\x00"),
    ],
)
def test_what_is_no_host_name(name):
    assert host_problem(name) is not None


def test_every_bad_line_is_named_by_its_number(tmp_path):
    path = tmp_path / "hostfile"
    path.write_bytes(b"node-1\r\n\r\nx:y\r\n-oProxyCommand=id\r\n")
    with pytest.raises(UserError) as error:
        read_hostfile(path)
    assert [problem.split(":")[0] for problem in error.value.problems] == [f"{path}, line 3", f"{path}, line 4"]


def test_names_that_cannot_be_resolved_lead_to_preflight():
    (problem,) = resolution_problems(["localhost", "no-such-host.invalid"])
    assert problem.startswith("the host no-such-host.invalid cannot be resolved")
    assert "preflight.py" in problem


@pytest.mark.parametrize("content", [None, b"", b"x:y\n", b"a\na\n", b"\xff\n", "directory"])
def test_preflight_refuses_a_hostfile_in_one_sentence(project_root, tmp_path, content):
    if content == "directory":
        (tmp_path / "hostfile").mkdir()
    elif content is not None:
        (tmp_path / "hostfile").write_bytes(content)
    command = [sys.executable, str(project_root / "colossal_llama/cluster/preflight.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: hostfile ") or done.stderr.startswith("error: hostfile, line 1")
    assert done.stderr.count("\n") == 1


def test_a_host_without_an_ssh_server_leads_to_preflight():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        (problem,) = ssh_problems(["localhost", "127.0.0.9"], port)
        assert problem.startswith(f"no ssh server answers on the host 127.0.0.9 at port {port}")
        assert "preflight.py" in problem
    with socket.socket() as listener:
        listener.bind(("127.0.0.9", port))
        listener.listen()
        assert ssh_problems(["127.0.0.9"], port) == []
