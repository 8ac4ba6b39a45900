"""Random command lines of every script: wild values of its options, options twice, unknown ones.

Each begins with a line that works, and differs from it in a few options. It must end with code 0,
or with code 2 and sentences; then nothing has changed on the disk. Inputs stay as they are in any
case.
"""

import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.outcome import HANG, PROJECT_ROOT, WRONG, Ended, Outcome, run_command
from tests.support.forked import run_forked
from tests.support.made_data import make_llama2, make_texts
from tests.support.training_runs import make_toy

TIMEOUT_S = 120
LONG_NAME = "n" * 400
NO_TEXT = b"\xff\xfe".decode("utf-8", "surrogateescape")
WORDS = (
    *("", " ", "-1", "0", "1", "2", "3", "7", "1e3", "1e308", "-1e308", "0.5", "nan", "inf", "-inf", "1_0", "0x10"),
    *("9" * 18, "9" * 30, "9" * 5000, "True", "no", "None", "null", "auto", "cpu", "cuda:99", "meta", "你好", "٣"),
    *("a,b", ",", "{}", "[]", "%s", "{0}", "$HOME", "a;b", "a b", "\n", "tokenizer", "any", "Han", "sft", NO_TEXT),
)
MILD = (
    "1",
    "2",
    "3",
    "8",
    "64",
    "0.5",
    "1e-3",
    "True",
    "no",
    "bf16",
    "auto",
    "cpu",
    "best_fit",
    "greedy",
    "你好",
    "any",
)
EXIT_CODE_OF_FINDINGS = {"preflight": 1}  # documented: hosts have problems
ENDLESS = ("--num_epochs", "--max_steps", "--num_samples", "--num_workers", "--timeout_s", "--connect_timeout_s")
"""Options whose large values ask for hours of work, or thousands of processes."""


@dataclass(frozen=True)
class World:
    """Inputs, a place for outputs, and a working command line of each script.

    Attributes:
        inputs: never written to.
        out: the working directory, emptied after every trial.
        lines: script and arguments by name of the command.
    """

    inputs: Path
    out: Path
    lines: dict[str, tuple[str, list[str]]]

    def paths(self) -> list[str]:
        """Names of files and directories that some option may get by mistake."""
        a, out = self.inputs, self.out
        existing = [a, a / "model", a / "model" / "config.json", a / "text.txt", a / "empty", a / "tokenizer"]
        others = [a / "absent", a / "text.txt" / "below", out / "new", out / "deep" / "new", Path("/dev/null")]
        others += [Path("/proc/self/no"), a / "link_to_itself", a / "locked", out / LONG_NAME, Path("/dev/full")]
        odd = ["", ".", "..", "/", "//", "~", "new", f"{out}/{NO_TEXT}", f"{out}/a\nb", f"{out}/你好", f"{out}/ "]
        pieces = [a / "pieces.jsonl", a / "part-00000", a / "pretrain_texts", a / "logs", a / "logs" / "metrics.jsonl"]
        return [*map(str, existing + others + pieces), *odd]


def make_world(root: Path) -> World:
    """Makes a small model, tokenizer, texts and parts."""
    inputs, out = root / "inputs", root / "out"
    inputs.mkdir(parents=True)
    make_toy(inputs)
    make_llama2(inputs / "tokenizer")
    texts = make_texts(root / "texts")
    for kind in ("pretrain", "sft"):
        (inputs / f"{kind}_texts").mkdir()
        source = next((texts / kind).glob("*/*.jsonl"))
        (inputs / f"{kind}_texts" / "a.jsonl").write_text(
            "".join(source.open(encoding="utf-8").readlines()[:5]), "utf-8"
        )
    (inputs / "pieces.jsonl").write_text('{"piece": "你好"}\n{"piece": "越来越"}\n', "utf-8")
    (inputs / "text.txt").write_text("text\n")
    (inputs / "hostfile").write_text("no-such-host.invalid\n")
    (inputs / "prompts.jsonl").write_text('{"source": "w3 w4"}\n')
    (inputs / "logs").mkdir()
    metrics = '{"step": 1, "tokens_seen": 9, "loss": 2.5}\n{"step": 2, "tokens_seen": 18, "loss": 2.0}\n'
    (inputs / "logs" / "metrics.jsonl").write_text(metrics)
    (inputs / "empty").mkdir()
    (inputs / "link_to_itself").symlink_to("link_to_itself")
    (inputs / "locked").mkdir(mode=0o500)
    out.mkdir()
    return World(inputs, out, _working_lines(inputs, out))


def _working_lines(inputs: Path, out: Path) -> dict[str, tuple[str, list[str]]]:
    tokenizer, model, new = inputs / "tokenizer", inputs / "model", out / "new"
    room = "colossal_llama"
    prepare = f"--tokenizer_dir {tokenizer} --data_output_dirs {new} --max_length 64 --num_workers 1"
    prepare += " --num_spliced_dataset_bins 2"
    train = f"--pretrained {model} --dataset {inputs}/part-00000 {inputs}/part-00001 --plugin zero2"
    train += f" --mixed_precision bf16 --max_length 96 --save_dir {new}/save --tensorboard_dir {new}/logs"
    train += f" --config_file {new}/config.json --max_steps 1"
    infer = f"--model_path {model} --device cpu --max_new_tokens 3"
    lines = {
        "learn_pieces": (
            f"{room}/tokenizer/learn_pieces.py",
            f"--source_tokenizer_dir {tokenizer} --data_input_dirs {inputs}/pretrain_texts --output_dir {new} "
            "--max_pieces 20 --min_frequency 2",
        ),
        "init_tokenizer": (
            f"{room}/tokenizer/init_tokenizer.py",
            f"--source_tokenizer_dir {tokenizer} --target_tokenizer_dir {new} "
            f"--expand_tokens_file {inputs}/pieces.jsonl",
        ),
        "report": (
            f"{room}/tokenizer/report.py",
            f"--tokenizers {tokenizer} --data_input_dirs {inputs}/pretrain_texts --output_file {out}/report.json",
        ),
        "init_model": (
            f"{room}/model/init_model.py",
            f"--source_model_and_tokenizer_path {model} --target_tokenizer_path {model} --target_model_path {new}",
        ),
        "merge_models": (
            f"{room}/model/merge_models.py",
            f"--base {model} --models {model} --weights 1 --output_dir {new}",
        ),
        "prepare_pretrain": ("prepare_pretrain_dataset.py", f"--data_input_dirs {inputs}/pretrain_texts {prepare}"),
        "prepare_sft": (
            "prepare_sft_dataset.py",
            f"--data_input_dirs {inputs}/sft_texts --llama_version 2 {prepare} --max_length 1024",
        ),
        "train": ("train.py", train),
        "dry_run": ("train.py", f"{train} --dry_run"),
        "inference": ("inference_example.py", f"{infer} --input_txt w3"),
        "inference of a file": (
            "inference_example.py",
            f"{infer} --input_file {inputs}/prompts.jsonl --output_file {out}/answers.jsonl",
        ),
        "chat": ("inference_example.py", f"{infer} --interactive --llama_version 2"),
        "plot_data": (f"{room}/dataset/plot_data.py", f"{inputs}/part-00000 --output {out}/data.png"),
        "plot_training": (f"{room}/training/plot_training.py", f"{inputs}/logs --output {out}/plot.png"),
        "scale_model": (f"{room}/training/memory/scale_model.py", f"--models 7b --gpus 8 --record {out}/record.json"),
        "preflight": (
            f"{room}/cluster/preflight.py",
            f"--hostfile {inputs}/hostfile --record {out}/preflight.json --connect_timeout_s 1 --timeout_s 5",
        ),
        "survey": (f"{room}/cluster/survey.py", f"--save_dir {new}"),
    }
    return {name: (script, words.split()) for name, (script, words) in lines.items()}


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Runs command lines of all scripts in turn; one of ten as a process of its own."""
    world = make_world(work_dir / "world")
    names = sorted(world.lines)
    options = {name: options_of(world.lines[name][0]) for name in names}
    for number in range(trials):
        name = names[number % len(names)]
        draw = random.Random(f"{seed} {number}")
        words = mutate(draw, world, name, options[name])
        yield run_trial(world, name, words, is_alone=draw.random() < 0.1, stdin=draw.choice(["", "hi\n", "\n/exit\n"]))


def options_of(script: str) -> list[str]:
    """Names of a script's options, from its help."""
    shown = subprocess.run(
        [sys.executable, PROJECT_ROOT / script, "--help"], capture_output=True, text=True, check=True
    )
    return sorted(set(re.findall(r"(?<![\w-])--?[a-zA-Z]\w*", shown.stdout)) - {"-h", "--help"})


def mutate(draw: random.Random, world: World, name: str, options: list[str]) -> list[str]:
    """Returns a working command line with one to four changes."""
    words = list(world.lines[name][1])
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        option = draw.choice(options)
        value = draw.choice(draw.choice((world.paths(), WORDS, MILD, MILD)))
        if option in ENDLESS and value not in ("", "0", "1", "2", "-1", "nan", "你好"):
            continue
        match draw.randrange(12):
            case 0:
                words += [option]
            case 1:
                words += [draw.choice(["--no_such_option", "--", "-", "-x", value])]
            case 2 if words:
                del words[draw.randrange(len(words))]
            case 3 | 4 if given := [i for i, word in enumerate(words) if not word.startswith("--")]:
                place = draw.choice(given)
                if words[place - 1] not in ENDLESS:
                    words[place] = value
            case _:
                words += [option, value]
    return words


def run_trial(world: World, name: str, words: list[str], is_alone: bool, stdin: str = "") -> Outcome:
    """Runs one command line, compares the disk before and after, and empties the output."""
    script = world.lines[name][0]
    inputs, root = snapshot(world.inputs), sorted(Path("/").iterdir())
    begin = time.monotonic()
    if is_alone:
        ended = run_command([str(PROJECT_ROOT / script), *words], TIMEOUT_S, world.out)
    else:
        done = run_forked(PROJECT_ROOT, script, *words, stdin=stdin, timeout_s=TIMEOUT_S, cwd=world.out)
        code = None if done.returncode == -9 else done.returncode
        ended = Ended(code, done.stdout, done.stderr, time.monotonic() - begin)
    result, problem = ended.result(), ""
    if ended.code == EXIT_CODE_OF_FINDINGS.get(name) and "error: " in ended.stderr:
        result = "whole"
    changed = difference(inputs, snapshot(world.inputs))
    if ended.code == 0:  # an output may be named to lie there
        changed -= _remove_new(world.inputs, changed - inputs.keys())
    if result != HANG and changed:
        result, problem = WRONG, f"inputs have changed: {sorted(changed)}"
    elif ended.code == 2 and (left := snapshot(world.out)):
        result, problem = WRONG, f"a refused command left {sorted(left)}"
    elif sorted(Path("/").iterdir()) != root:
        result, problem = WRONG, "something was written to /"
    shutil.rmtree(world.out)
    world.out.mkdir()
    kind = f"{name}, alone" if is_alone else name
    detail = f"{script} {words!r} stdin={stdin!r}"
    is_good = Outcome(kind, result).is_good
    return Outcome(kind, result, detail, "" if is_good else f"{problem}\n{ended.last_lines(12)}", ended.duration_s)


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last change of everything below a directory."""
    found = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(directory))] = (status.st_size if path.is_file() else 0, status.st_mtime_ns)
    return found


def difference(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> set[str]:
    """Names that are new, gone or changed."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def _remove_new(directory: Path, names: set[str]) -> set[str]:
    """Removes what a command has written, and restores nothing else; returns the names."""
    for path in sorted((directory / name for name in names), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    return names
