"""Two hosts on one machine: a real sshd each, with a name, processes, mounts and a home of its own.

A host is a process tree in Linux namespaces (unshare(1): mounts, host name, processes) that listens
on a loopback address of its own:

    node-1  127.0.0.2  ─ sshd ─ what is started there by ssh          both see the machine's files,
    and each may have some hidden node-2  127.0.0.3  ─ sshd ─ …
    or replaced; killing the tree's first process is pulling the plug

Nothing of the machine's own configuration is read or changed: keys, port, sshd_config, /etc/hosts
and the home directory are the test's.
"""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NAMES = ("node-1", "node-2")
_ADDRESSES = {"node-1": "127.0.0.2", "node-2": "127.0.0.3"}
DOWN = "node-3"  # known by name, and never started
_KNOWN = {**_ADDRESSES, DOWN: "127.0.0.4"}
_SSHD_PLACES = ("/usr/sbin", "/usr/local/sbin", "/sbin")

# With the tests' own end, however it comes, a host ends too.
_AS_A_HOST = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--uts",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
]

# Runs as the first process of the namespaces. The machine's /run may lack sshd's directory, and its
# passwd sshd's user.
_INIT = """
set -eu
hostname "$name"
mount --make-rprivate /
mount --bind "$place/passwd" /etc/passwd
mount --bind "$place/hosts" /etc/hosts
mount -t tmpfs tmpfs /run
mkdir -m 755 /run/sshd
exec "$sshd" -D -e -f "$place/sshd_config"
"""


def why_no_hosts() -> str | None:
    """What is missing for hosts of our own, or None."""
    if find_sshd() is None:
        return "sshd is absent: install openssh-server, or let run_tests.sh fetch it"
    if any(shutil.which(tool) is None for tool in ("ssh", "ssh-keygen", "setpriv", "unshare")):
        return "ssh, ssh-keygen, setpriv or unshare is absent"
    if os.geteuid() != 0 or subprocess.run([*_AS_A_HOST, "true"], capture_output=True, check=False).returncode:
        return "namespaces for hosts of our own need root"
    return None


def find_sshd() -> Path | None:
    """sshd of the machine, or the one that run_tests.sh unpacked beside the environment."""
    given = os.environ.get("COLOSSAL_LLAMA_SSHD")
    path = os.pathsep.join([os.environ["PATH"], *_SSHD_PLACES])
    found = given or shutil.which("sshd", path=path)
    return Path(found) if found else None


@dataclass
class Host:
    """One host: started when made."""

    name: str
    place: Path
    port: int
    process: subprocess.Popen = field(init=False)

    def start(self) -> None:
        """Boots the host and waits until its sshd answers."""
        sshd = find_sshd()
        libraries = (
            sshd.parents[1] / "lib" / "x86_64-linux-gnu"
        )  # where the package was unpacked, what it links to lies beside
        variables = {"name": self.name, "place": str(self.place), "sshd": str(sshd), "PATH": os.environ["PATH"]}
        command = [*_AS_A_HOST, "bash", "-c", _INIT]
        with (self.place / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**variables, "LD_LIBRARY_PATH": str(libraries)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if self._answers():
                return
            assert self.process.poll() is None, (self.place / "sshd.log").read_text()
            time.sleep(0.05)
        raise AssertionError(f"{self.name} does not answer")

    def _answers(self) -> bool:
        try:
            socket.create_connection((_ADDRESSES[self.name], self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def pull_the_plug(self) -> None:
        """Kills all processes of the host at once, with SIGKILL, its sshd and launchers among
        them.
        """
        self.process.kill()  # with the first process of its namespace the kernel kills all others
        self.process.wait()
        while self._answers():
            time.sleep(0.01)

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """The plug is pulled for the length of the block."""
        self.pull_the_plug()
        try:
            yield
        finally:
            self.start()

    def processes(self, words: str) -> list[psutil.Process]:
        """The host's processes whose command line has some words in it."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def command(self, words: list[str] | str, **variables: str) -> list[str]:
        """The ssh command that runs something on this host, in the project's root, as in an
        activated environment.
        """
        line = words if isinstance(words, str) else shlex.join(words)
        settings = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **variables}
        exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
        root = Path(__file__).resolve().parents[2]
        config = self.place / "home" / ".ssh" / "config"
        return ["ssh", "-F", str(config), self.name, f"cd {shlex.quote(str(root))} && export {exports} && {line}"]

    @contextmanager
    def without(self, directory: Path) -> Iterator[None]:
        """Hides what a directory holds from this host, as when its file system is not mounted
        there.
        """
        with self._mounted(["-t", "tmpfs", "tmpfs", str(directory)], directory):
            yield

    @contextmanager
    def with_other(self, file: Path, content: str) -> Iterator[None]:
        """Gives this host another content of a file than the machine has."""
        other = self.place / f"other-{file.name}"
        other.write_text(content)
        with self._mounted(["--bind", str(other), str(file)], file):
            yield

    @contextmanager
    def _mounted(self, arguments: list[str], place: Path) -> Iterator[None]:
        done = self.run(["mount", *arguments])
        assert done.returncode == 0, done.stderr
        try:
            yield
        finally:
            self.run(["umount", str(place)])

    def run(self, words: list[str] | str, timeout_s: int = 120, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs something on this host and waits for it."""
        return subprocess.run(
            self.command(words, **variables),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )


def make_hosts(place: Path) -> dict[str, Host]:
    """Both hosts, each able to reach both by name with ssh and without a password."""
    place.mkdir(parents=True, exist_ok=True)
    port = free_port()
    key = place / "key"
    _make_key(key)
    hosts = {}
    for name, address in _ADDRESSES.items():
        home = place / name / "home"
        (home / ".ssh").mkdir(parents=True)
        (place / name / "bin").mkdir()
        _make_key(place / name / "host_key")
        root_entry = f"root:x:0:0:root:{home}:/bin/bash\n"
        others = [
            line for line in Path("/etc/passwd").read_text().splitlines(True) if not line.startswith(("root:", "sshd:"))
        ]
        (place / name / "passwd").write_text(
            root_entry + "".join(others) + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        names = "".join(f"{where} {who}\n" for who, where in _KNOWN.items())
        (place / name / "hosts").write_text("127.0.0.1 localhost\n" + names)
        (place / name / "sshd_config").write_text(
            f"ListenAddress {address}:{port}\nHostKey {place / name / 'host_key'}\nAuthorizedKeysFile {key}.pub\n"
            f"SetEnv PATH={place / name / 'bin'}:/usr/local/bin:/usr/bin:/bin\n"
            "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
        )
        addresses = "".join(f"Host {who}\n    HostName {where}\n" for who, where in _KNOWN.items())
        (home / ".ssh" / "config").write_text(
            addresses + f"Host *\n    Port {port}\n    User root\n    IdentityFile {key}\n    IdentitiesOnly yes\n    "
            "StrictHostKeyChecking no\n"
            f"    UserKnownHostsFile {home / '.ssh' / 'known_hosts'}\n    LogLevel ERROR\n"
        )
        hosts[name] = Host(name, place / name, port)
        hosts[name].start()
    return hosts


def _make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL)


def free_port() -> int:
    """A port of both hosts' that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.2", 0))
        return listener.getsockname()[1]
