"""Two hosts, each with an sshd, name and mounts of its own (tests/hosts.py): trained on, checked, unplugged."""

import json
import re
import shlex
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path

import hosts as own_hosts
import pytest


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


def colossalai_run(hostfile: Path, words: list[str]) -> list[str]:
    head = ["colossalai", "run", "--nproc_per_node", "1", "--hostfile", str(hostfile), "--master_port", "30113"]
    return [*head, "train.py", *words]


def filled_in(template: Path, copy: Path, parts: tuple[Path, ...], **values: str) -> Path:
    """A copy of a template with its variables and its list of parts written in, as a user does in an editor."""
    text = template.read_text()
    for name, value in values.items():
        text, found = re.subn(rf'^{name}="\$\{{{name}:-.*?\}}"', f'{name}="{value}"', text, flags=re.MULTILINE)
        assert found == 1, name
    listed = "".join(f'    "{part}"\n' for part in parts)
    text = text.replace("declare -a dataset=(\n", f"declare -a dataset=(\n{listed}")
    copy.write_text(text.replace("--save_interval 400", "--save_interval 2"))
    return copy


@pytest.mark.parametrize(("template", "kind"), [("train.example.sh", "parts"), ("train_sft.example.sh", "sft_parts")])
def test_filled_in_template_trains_on_both_and_resumes(template, kind, cluster, hostfile, toy, project_root, tmp_path):
    places = {f"PARENT_{name}": str(tmp_path / name) for name in ("SAVE_DIR", "TENSORBOARD_DIR", "CONFIG_FILE")}
    script = filled_in(
        project_root / template,
        tmp_path / template,
        getattr(toy, kind),
        PROJECT_NAME="trial",
        PRETRAINED_MODEL_PATH=str(toy.model),
        HOSTFILE=str(hostfile),
        NPROC_PER_NODE="1",
        **places,
    )
    done = cluster["node-1"].run(["bash", str(script)])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert "node-1: success" in done.stdout
    assert "node-2: success" in done.stdout
    # torchrun's agents part without waiting for each other's answer, and at times one logs that the other's store has gone.
    ours = [line for line in done.stderr.splitlines() if "elastic/agent/server/api.py" not in line]
    assert not any("Traceback" in line for line in ours), done.stderr[-6000:]
    assert done.stdout.count("done: ") == 1
    (save_dir,) = (tmp_path / "SAVE_DIR").iterdir()
    (logs,) = (tmp_path / "TENSORBOARD_DIR").iterdir()
    assert len(list(logs.glob("events.*"))) == 1
    assert (save_dir / "modelling" / "config.json").is_file()
    first = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    assert json.loads((tmp_path / "CONFIG_FILE" / f"{save_dir.name}.json").read_text())["world_size"] == 2
    if kind == "sft_parts":
        return

    last = max(save_dir.glob("epoch-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    shutil.rmtree(last)
    again = cluster["node-1"].run(["bash", str(script)], FULL_PROJECT_NAME=save_dir.name)
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-6000:]
    assert "resuming" in again.stdout
    assert last.is_dir()
    second = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in second] == [entry["loss"] for entry in first]


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


def test_what_is_not_mounted_on_one_host_ends_the_run_on_all_at_once(cluster, hostfile, runner, toy, tmp_path):
    master, other = cluster["node-1"], cluster["node-2"]
    command = colossalai_run(hostfile, runner.command("unmounted", "--max_steps", "1"))
    with other.without(toy.parts[1]), other.without(toy.model):
        done = master.run(command)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert done.returncode == 1
    for speaker in ("error: on node-2: ", "error (rank 1 on node-2): on node-2: "):
        assert any(line.startswith(speaker) and f"{toy.model} holds no config.json" in line for line in lines), lines
    assert not (runner.workspace / "unmounted" / "logs").exists()

    save_dir = runner.workspace / "unmounted" / "save"
    save_dir.mkdir(parents=True, exist_ok=True)
    with other.without(save_dir):
        done = master.run(command)
    assert done.returncode == 1
    assert f"error: on node-2: --save_dir {save_dir} is not what node-1 has under that name" in done.stderr
    assert [path.name for path in save_dir.iterdir()] == [".lock"]


def test_a_host_that_goes_is_named_and_the_run_goes_on_without_it(cluster, hostfile, runner):
    master, other = cluster["node-1"], cluster["node-2"]
    options = ("--num_epochs", "20", "--max_steps", "150", "--save_interval", "10", "--skip_save_each_epoch")
    words = colossalai_run(hostfile, runner.command("unplugged", *options, "--load_checkpoint", "auto"))
    metrics = runner.workspace / "unplugged" / "logs" / "metrics.jsonl"
    process = subprocess.Popen(
        master.command(words, COLOSSAL_LLAMA_HOST_TIMEOUT_S="6"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 12, process)
    other.pull_the_plug()
    pulled = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - pulled < 60
    assert process.returncode != 0
    assert "no sign of life from node-2 (rank 1) within 6 s" in errors
    other.start()

    hostfile.write_text("node-1\n")
    done = master.run(words)
    assert done.returncode == 0, done.stderr[-6000:]
    assert re.search(r"resuming .*_step-\d+0 after step \d+0", done.stdout)
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 151))


def wait_until(condition, process: subprocess.Popen, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def preflight(
    host: own_hosts.Host, hostfile: Path, toy, tmp_path: Path, *more: str
) -> subprocess.CompletedProcess[str]:
    words = [
        "python",
        "preflight.py",
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
    done = preflight(cluster["node-1"], hostfile, toy, tmp_path, "--all_reduce_mib", "4", "--master_port", "30114")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["problems"] == []
    assert [host["survey"]["name"] for host in record["hosts"]] == list(own_hosts.NAMES)
    assert record["all_reduce"]["processes"] == 2
    assert re.search(r"bus bandwidth [\d.]+ GB/s", done.stdout)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_preflight_names_the_broken_hosts_and_what_to_do(cluster, hostfile, toy, tmp_path):
    other = cluster["node-2"]
    hostfile.write_text(f"node-1\nnode-2\n{own_hosts.DOWN}\nno-such-host\n")
    tqdm_metadata = next(file for file in metadata.files("tqdm") if file.name == "METADATA").locate()
    older = re.sub(r"^Version: .*", "Version: 0.1", Path(tqdm_metadata).read_text(), flags=re.MULTILINE)
    with other.without(toy.parts[1]), other.without(tmp_path), other.with_other(Path(tqdm_metadata), older):
        done = preflight(cluster["node-1"], hostfile, toy, tmp_path, "--min_free_gib", "1e9")
    assert done.returncode == 1, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    found = {(problem["host"], problem["check"]) for problem in record["problems"]}
    assert found == {
        ("node-1", "disk"),
        ("node-2", "packages"),
        ("node-2", "data"),
        ("node-2", "save_dir"),
        ("node-2", "disk"),
        (own_hosts.DOWN, "ssh"),
        ("no-such-host", "ssh"),
    }
    assert record["all_reduce"] is None
    for words in (
        "node-2: tqdm 0.1 (elsewhere ",
        f"{toy.parts[1]} is not there or empty",
        f"{own_hosts.DOWN}: nothing answers",
    ):
        assert words in done.stderr
    assert "no-such-host: the name is not known here" in done.stderr
