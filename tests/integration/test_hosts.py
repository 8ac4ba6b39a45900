"""Two hosts, each with an sshd, name and mounts of its own (tests/support/hosts.py): trained on,
checked, unplugged.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from tests.support import hosts as own_hosts
from tests.support.waiting import wait_until

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """node-1 and node-2, running."""
    reason = own_hosts.why_no_hosts()
    if reason:
        pytest.skip(reason)
    made = own_hosts.make_hosts(tmp_path_factory.mktemp("hosts"))
    yield made
    for host in made.values():
        host.pull_the_plug()


@pytest.fixture
def hostfile(tmp_path):
    """A hostfile with both."""
    path = tmp_path / "hostfile"
    path.write_text("".join(f"{name}\n" for name in own_hosts.NAMES))
    return path


def colossalai_run(hostfile: Path, words: list[str], logs: Path | None = None) -> list[str]:
    """With `logs`, torchrun writes what each rank says into files there, besides showing it."""
    head = ["colossalai", "run", "--nproc_per_node", "1", "--hostfile", str(hostfile)]
    if logs is not None:
        head += ["--extra_launch_args", f"tee=3,log_dir={logs}"]
    return [*head, "--master_port", str(own_hosts.free_port()), "train.py", *words]


def said_by_ranks(logs: Path) -> list[str]:
    """Standard error of every rank, by itself: colossalai run mixes the hosts' wherever its reads
    end, even within a line.
    """
    return [path.read_text() for path in logs.rglob("stderr.log")]


@dataclass(frozen=True)
class FilledIn:
    """A template that a user has filled in, and where it writes."""

    script: Path
    root: Path

    @property
    def save_dir(self) -> Path:
        """Of its only run."""
        (run,) = (self.root / "SAVE_DIR").iterdir()
        return run

    @property
    def logs(self) -> Path:
        return self.root / "TENSORBOARD_DIR" / self.save_dir.name

    def metrics(self) -> list[dict]:
        return [json.loads(line) for line in (self.logs / "metrics.jsonl").read_text().splitlines()]


def filled_in(
    template: Path, model: Path, parts: tuple[Path, ...], hostfile: Path, num_epochs: int, root: Path
) -> FilledIn:
    """A copy of a template with variables, list of parts and options written in, as a user does in
    an editor.
    """
    values = {"PROJECT_NAME": "trial", "PRETRAINED_MODEL_PATH": model, "HOSTFILE": hostfile, "NPROC_PER_NODE": 1}
    values |= {f"PARENT_{name}": root / name for name in ("SAVE_DIR", "TENSORBOARD_DIR", "CONFIG_FILE")}
    text = template.read_text()
    for name, value in values.items():
        text, found = re.subn(rf'^{name}="\$\{{{name}:-.*?\}}"', f'{name}="{value}"', text, flags=re.MULTILINE)
        assert found == 1, name
    listed = "".join(f'    "{part}"\n' for part in parts)
    edits = {
        "declare -a dataset=(\n": f"declare -a dataset=(\n{listed}",
        "--num_epochs 1": f"--num_epochs {num_epochs}",
        "--master_port 30013": f"--master_port {own_hosts.free_port()}",
    }
    for former, new in edits.items():
        assert text.count(former) == 1, former
        text = text.replace(former, new)
    script = root / template.name
    script.write_text(text)
    return FilledIn(script, root)


def check_success_on_both(code: int, stdout: str, stderr: str) -> None:
    assert code == 0, stdout[-3000:] + stderr[-6000:]
    assert "node-1: success" in stdout
    assert "node-2: success" in stdout
    # torchrun's agents part without waiting for each other's answer, and at times one logs that the
    # other's store has gone.
    ours = [line for line in stderr.splitlines() if "elastic/agent/server/api.py" not in line]
    assert not any("Traceback" in line for line in ours), stderr[-6000:]


def test_filled_in_pretraining_template_stops_cleanly_and_goes_on(cluster, hostfile, toy, project_root, tmp_path):
    """SIGTERM reaches the rank of one host, and twice, as from SLURM, which signals both torchrun
    and what torchrun started.
    """
    template = filled_in(project_root / "train.example.sh", toy.model, toy.parts, hostfile, 12, tmp_path)
    process = started(cluster["node-1"], ["bash", str(template.script)])
    wait_until(lambda: any((tmp_path / "TENSORBOARD_DIR").glob("*/metrics.jsonl")), process)
    wait_until(lambda: len(template.metrics()) >= 2, process)
    (rank,) = cluster["node-2"].processes("-u train.py")
    for _ in range(2):
        rank.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    output, errors = process.communicate(timeout=120)
    check_success_on_both(process.returncode, output, errors)
    done = template.metrics()[-1]["step"]
    assert f"stopped by a signal after step {done} of 36; everything is saved" in output
    assert any(path.name.endswith(f"_step-{done}") for path in template.save_dir.glob("epoch-*"))
    assert len(list(template.logs.glob("events.*"))) == 1
    assert not (template.save_dir / "modelling").exists()

    again = cluster["node-1"].run(["bash", str(template.script)], FULL_PROJECT_NAME=template.save_dir.name)
    check_success_on_both(again.returncode, again.stdout, again.stderr)
    assert f"after step {done}" in again.stdout
    assert [entry["step"] for entry in template.metrics()] == list(range(1, 37))
    assert (template.save_dir / "modelling" / "config.json").is_file()


def test_odd_words_and_variables_reach_both_hosts_whole(cluster, hostfile, project_root, tmp_path):
    (tmp_path / "rank.py").write_text(
        "import json, os, pathlib, sys\n"
        "record = pathlib.Path(__file__).with_name('given-' + os.environ['RANK'])\n"
        "record.write_text(json.dumps([sys.argv[1:], os.environ['NCCL_ODD'], 'MY_SECRET' in os.environ]))\n"
    )
    odd = ["a b", "it's", "$(touch executed)", "`touch executed`", 'say "x"; touch executed', "*", "\\", "a\nb", "-x"]
    words = ["--nproc_per_node", "1", "--hostfile", str(hostfile), "--master_port", str(own_hosts.free_port())]
    command = ["bash", "colossal_llama/cluster/stoppable.sh", str(hostfile), "colossalai", "run", *words]
    variables = {"NCCL_ODD": 'q"$(touch executed)`touch executed`', "MY_SECRET": "x"}
    done = cluster["node-1"].run([*command, str(tmp_path / "rank.py"), *odd], **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert json.loads((tmp_path / f"given-{rank}").read_text()) == [odd, variables["NCCL_ODD"], False]
    assert not (project_root / "executed").exists()


def test_hosts_that_are_not_there_are_named_before_anything_starts(cluster, hostfile, toy, tmp_path):
    for name, words in (
        ("no-such-host", "the host no-such-host cannot be resolved"),
        (own_hosts.DOWN, f"no ssh server answers on the host {own_hosts.DOWN} at port"),
        ("-oProxyCommand=touch executed", f"{hostfile}, line 2: '-oProxyCommand=touch executed' is not a host name"),
    ):
        hostfile.write_text(f"node-1\n{name}\n")
        variables = {"HOSTFILE": str(hostfile), "NPROC_PER_NODE": "1", "PRETRAINED_MODEL_PATH": str(toy.model)}
        variables |= {
            f"PARENT_{kind}": str(tmp_path / "out") for kind in ("SAVE_DIR", "TENSORBOARD_DIR", "CONFIG_FILE")
        }
        done = cluster["node-1"].run(["bash", "train.example.sh", str(toy.parts[0])], 60, **variables)
        assert done.returncode == 2, done.stdout + done.stderr
        assert f"error: {words}" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


def test_a_signal_reaches_ranks_on_another_host_than_the_template_s(cluster, project_root, tmp_path):
    """As from a login node: node-1 starts, node-2 alone is in the hostfile and has the rank."""
    (tmp_path / "hostfile").write_text("node-2\n")
    (tmp_path / "rank.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(print('saved')))\n"
        "pathlib.Path(__file__).with_name('begun').touch()\n"
        "time.sleep(60)\n"
    )
    words = [*colossalai_run(tmp_path / "hostfile", [])[:-1], str(tmp_path / "rank.py")]
    process = started(
        cluster["node-1"], ["bash", "colossal_llama/cluster/stoppable.sh", str(tmp_path / "hostfile"), *words]
    )
    wait_until((tmp_path / "begun").exists, process)
    (script,) = cluster["node-1"].processes("bash colossal_llama/cluster/stoppable.sh")
    script.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert "forwarded to the ranks of node-2" in errors
    assert "saved" in output
    assert "node-2: success" in output


def test_filled_in_sft_template_trains_on_both_and_resumes(cluster, hostfile, toy, project_root, tmp_path):
    template = filled_in(project_root / "train_sft.example.sh", toy.model, toy.sft_parts, hostfile, 4, tmp_path)
    done = cluster["node-1"].run(["bash", str(template.script)])
    check_success_on_both(done.returncode, done.stdout, done.stderr)
    assert done.stdout.count("done: ") == 1
    assert len(list(template.logs.glob("events.*"))) == 1
    assert json.loads((tmp_path / "CONFIG_FILE" / f"{template.save_dir.name}.json").read_text())["world_size"] == 2
    first = template.metrics()
    assert len(first) == 4

    shutil.rmtree(template.save_dir / "modelling")
    for step in (3, 4):
        shutil.rmtree(next(template.save_dir.glob(f"epoch-*_step-{step}")))
    again = cluster["node-1"].run(["bash", str(template.script)], FULL_PROJECT_NAME=template.save_dir.name)
    check_success_on_both(again.returncode, again.stdout, again.stderr)
    assert "after step 2" in again.stdout
    assert [entry["loss"] for entry in template.metrics()] == [entry["loss"] for entry in first]
    assert (template.save_dir / "modelling" / "config.json").is_file()


def test_each_host_chooses_among_its_own_gpus(cluster, hostfile, toy, tmp_path):
    used = {"node-1": "900, 0\n3, 1\n70000, 2\n4, 3", "node-2": "2, 0\n80000, 1\n80000, 2\n1, 3"}
    for name, shown in used.items():
        tool(cluster[name].place / "bin" / "nvidia-smi", f"echo '{shown}'")
    tool(tmp_path / "torchrun", 'echo "$(hostname) computes on $CUDA_VISIBLE_DEVICES"')  # a place that both see
    variables = {"HOSTFILE": str(hostfile), "NPROC_PER_NODE": "2", "PRETRAINED_MODEL_PATH": str(toy.model)}
    variables |= {f"PARENT_{name}": str(tmp_path / name) for name in ("SAVE_DIR", "TENSORBOARD_DIR", "CONFIG_FILE")}
    own_tools = cluster["node-1"].place / "bin"
    line = f"PATH={tmp_path}:{own_tools}:$PATH bash train.example.sh {shlex.quote(str(toy.parts[0]))}"
    try:
        done = cluster["node-1"].run(line, **variables)
    finally:
        for name in used:
            (cluster[name].place / "bin" / "nvidia-smi").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node-1 computes on 1,3" in done.stdout
    assert "node-2 computes on 0,3" in done.stdout


def tool(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def with_older_tqdm(host: own_hosts.Host) -> AbstractContextManager[None]:
    """As if an older version was installed on the host."""
    note = next(file for file in metadata.files("tqdm") if file.name == "METADATA").locate()
    return host.with_other(
        Path(note), re.sub(r"^Version: .*", "Version: 0.1", Path(note).read_text(), flags=re.MULTILINE)
    )


def test_what_is_wrong_on_one_host_ends_the_run_on_all_at_once(cluster, hostfile, runner, toy, project_root, tmp_path):
    master, other = cluster["node-1"], cluster["node-2"]
    words = runner.command("unmounted", "--max_steps", "1")
    other_code = other.with_other(project_root / "colossal_llama/training/plot_training.py", "")
    with other.without(toy.parts[1]), other.without(toy.model), with_older_tqdm(other), other_code:
        done = master.run(colossalai_run(hostfile, words, tmp_path / "first"))
    assert done.returncode == 1
    causes = (
        f"on node-2: --pretrained: {toy.model} holds no config.json",
        f"on node-2: tqdm is 0.1, on node-1 {metadata.version('tqdm')}",
        "on node-2: this project's files are not those of node-1",
    )
    check_said_by_both(causes, tmp_path / "first", done.stderr)
    assert not (runner.workspace / "unmounted" / "logs").exists()

    save_dir = runner.workspace / "unmounted" / "save"
    save_dir.mkdir(parents=True, exist_ok=True)
    with other.without(save_dir):
        done = master.run(colossalai_run(hostfile, words, tmp_path / "second"))
    assert done.returncode == 1
    causes = (f"on node-2: --save_dir {save_dir} is not what node-1 has under that name",)
    check_said_by_both(causes, tmp_path / "second", done.stderr)
    assert [*save_dir.iterdir()] == []  # a refused run leaves nothing behind


def check_said_by_both(causes: tuple[str, ...], logs: Path, shown: str) -> None:
    """Each rank has said all causes, and the launcher has shown them."""
    for speaker in ("error: ", "error (rank 1 on node-2): "):
        (said,) = (text for text in said_by_ranks(logs) if f"\n{speaker}" in f"\n{text}")
        for cause in causes:
            assert any(line.startswith(speaker + cause) for line in said.splitlines()), (cause, said)
    for cause in causes:
        assert cause in shown, shown


def test_a_host_that_goes_is_named_and_the_run_goes_on_without_it(cluster, hostfile, runner, tmp_path):
    """First the other host goes, then the master, with the launcher and the store; then the other
    goes on alone.
    """
    master, other = cluster["node-1"], cluster["node-2"]
    options = ("--num_epochs", "20", "--max_steps", "200", "--save_interval", "10", "--skip_save_each_epoch")
    words = colossalai_run(hostfile, runner.command("unplugged", *options, "--load_checkpoint", "auto"))
    place = runner.workspace / "unplugged"

    def last_step() -> int:
        metrics = place / "logs" / "metrics.jsonl"
        return len(metrics.read_text().splitlines()) if metrics.exists() else 0

    process = started(master, words, COLOSSAL_LLAMA_HOST_TIMEOUT_S="6")
    wait_until(lambda: last_step() > 12, process)
    pulled = time.monotonic()
    with other.unplugged():
        _, errors = process.communicate(timeout=60)
    assert time.monotonic() - pulled < 60
    assert process.returncode != 0
    assert errors.count("no heartbeat from node-2 (rank 1) within 6 s") == 1, errors[-6000:]

    # The same command again. What the survivor's torchrun ends with is written down, for the
    # launcher that would tell it goes.
    torchrun = f"{Path(sys.executable).parent}/torchrun"
    tool(tmp_path / "torchrun", f'{torchrun} "$@"; echo $? > {tmp_path}/code-of-$(hostname)')
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    former = last_step()
    process = started(master, words, COLOSSAL_LLAMA_HOST_TIMEOUT_S="6", PATH=path)
    wait_until(lambda: last_step() > former + 10, process)
    pulled = time.monotonic()
    with master.unplugged():
        wait_until(lambda: (tmp_path / "code-of-node-2").exists(), timeout_s=60)
        assert time.monotonic() - pulled < 60
        assert int((tmp_path / "code-of-node-2").read_text()) != 0
        assert not other.processes("train.py")
        process.communicate()
        (said,) = (place / "save" / "why_it_ended.txt").read_text().splitlines()
        assert "rank 1 on node-2: no heartbeat from node-1 (rank 0) within 6 s" in said

        hostfile.write_text("node-2\n")
        done = other.run(words)
    assert done.returncode == 0, done.stderr[-6000:]
    assert f"failure report of an earlier run: {said}" in done.stdout
    assert not (place / "save" / "why_it_ended.txt").exists()
    assert re.search(r"resuming .*_step-\d+0 after step \d+0", done.stdout)
    assert last_step() == 200


def started(host: own_hosts.Host, words: list[str], **variables: str) -> subprocess.Popen:
    """Starts a command on a host and returns at once."""
    return subprocess.Popen(
        host.command(words, **variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def preflight(
    host: own_hosts.Host, hostfile: Path, toy, tmp_path: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    words = [
        "python",
        "colossal_llama/cluster/preflight.py",
        "--hostfile",
        str(hostfile),
        "--nproc_per_node",
        "1",
        "--pretrained",
        str(toy.model),
    ]
    words += [
        "--dataset",
        *map(str, toy.parts),
        "--save_dir",
        str(tmp_path),
        "--record",
        str(tmp_path / "record.json"),
        *more,
    ]
    return host.run(words)


def test_preflight_finds_healthy_hosts_healthy(cluster, hostfile, toy, tmp_path):
    port = str(own_hosts.free_port())
    done = preflight(cluster["node-1"], hostfile, toy, tmp_path, "--all_reduce_mib", "4", "--master_port", port)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["problems"] == []
    assert [host["survey"]["name"] for host in record["hosts"]] == list(own_hosts.NAMES)
    assert record["all_reduce"]["processes"] == 2
    assert re.search(r"bus bandwidth [\d.]+ GB/s", done.stdout)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_preflight_names_the_broken_hosts_and_what_to_do(cluster, hostfile, toy, project_root, tmp_path):
    other = cluster["node-2"]
    hostfile.write_text(f"node-1\nnode-2\n{own_hosts.DOWN}\nno-such-host\n")
    late = other.place / "bin" / "date"
    tool(late, f"exec {shutil.which('date')} -d '-1 hour' \"$@\"")
    other_code = other.with_other(project_root / "colossal_llama/training/plot_training.py", "")
    with other.without(toy.parts[1]), other.without(tmp_path), with_older_tqdm(other), other_code:
        done = preflight(cluster["node-1"], hostfile, toy, tmp_path, "--min_free_gib", "1e9")
    late.unlink()
    assert done.returncode == 1, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    found = {(problem["host"], problem["check"]) for problem in record["problems"]}
    of_other = ("packages", "code", "data", "save_dir", "disk", "clock")
    down = {(own_hosts.DOWN, "ssh"), ("no-such-host", "ssh")}
    assert found == {("node-1", "disk"), *(("node-2", check) for check in of_other), *down}
    assert record["all_reduce"] is None
    for words in (
        "node-2: tqdm 0.1 (elsewhere ",
        "node-2: its clock is -3600.",
        f"{toy.parts[1]} does not exist or is empty",
        f"{own_hosts.DOWN}: no ssh server answers",
    ):
        assert words in done.stderr
    assert "no-such-host: the host name cannot be resolved" in done.stderr
