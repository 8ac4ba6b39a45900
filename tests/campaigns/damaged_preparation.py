"""Damages to every kind of file of a half-finished and of a complete preparation.

A trial damages one file, or swaps two, and runs the same command again. Of a complete one, it runs
--verify before. Right is a sentence with code 2, a repair that is said and ends in the undisturbed
bytes, or the undisturbed bytes where the damage does not matter.

The scripts' entry point is called in this process: a trial takes a fraction of a second.
"""

import contextlib
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from colossal_llama.dataset.prepare.cli import prepare_pretrain
from colossal_llama.utils.errors import run_main
from tests.campaigns.outcome import REFUSED, REPAIRED, WHOLE, WRONG, Ended, Outcome, run_command
from tests.support.made_data import make_llama2

NUM_PARTS = 6
HALF_FINISHED, COMPLETE = "half-finished", "complete"
SHARE_HALF_FINISHED = 0.6
STOPS = ("2 chunks", "6 chunks", "plan", "1 part", "4 parts", "5 chunks of a repair")
"""Where the half-finished preparations were killed; the last is complete but for a part."""
UNVERIFIED = ("last_run.json",)  # --verify reads what says how the data are, not when they were made


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Damages copies of preparations, and yields how the commands that follow end."""
    chance = random.Random(seed)
    command = _make_input(work_dir)
    templates = _make_templates(command, work_dir)
    undisturbed = content(templates[COMPLETE][0])
    for number in range(trials):
        state = HALF_FINISHED if chance.random() < SHARE_HALF_FINISHED else COMPLETE
        output = work_dir / "out"
        shutil.copytree(chance.choice(templates[state]), output)
        kind, file = _choose_file(chance, output)
        name = chance.choice(list(DAMAGES))
        before = content(output)
        told = DAMAGES[name](chance, file, _choose_file(chance, output)[1])
        detail = f"seed {seed}, trial {number}: {told or file.relative_to(output)}: {name}"
        is_same = content(output) == before
        if state == COMPLETE:
            yield _verified(f"complete, --verify: {kind}", output, detail, is_same or kind in UNVERIFIED)
        yield _run_again(f"{state}: {kind}", [*command, "--data_output_dirs", str(output)], output, detail, undisturbed)
        shutil.rmtree(output)


def _run_again(kind: str, command: list[str], output: Path, detail: str, undisturbed: dict[str, bytes]) -> Outcome:
    ended = run_here(command)
    result = ended.result()
    if result == WHOLE:
        said = "made anew" in ended.stdout + ended.stderr
        result = WRONG if content(output) != undisturbed else REPAIRED if said else WHOLE
    shown = (ended.stdout + ended.stderr)[-2000:] if result not in (REFUSED, REPAIRED, WHOLE) else ""
    return Outcome(kind, result, detail, shown, ended.duration_s)


def _verified(kind: str, output: Path, detail: str, is_same: bool) -> Outcome:
    ended = run_here(["--verify", str(output)])
    result = ended.result()
    if result == WHOLE and not is_same:
        result = WRONG
    return Outcome(kind, result, detail, ended.stderr[-2000:] if result != REFUSED else "", ended.duration_s)


# ------------------------------------------------------------------------------------- preparations


def _make_input(work_dir: Path) -> list[str]:
    tokenizer_dir = make_llama2(work_dir / "tokenizer")
    source = work_dir / "in"
    source.mkdir()
    for number in range(8):
        rows = [
            {"source": "", "target": f"document {n} " + "some words " * (n % 9), "category": f"c{n % 3}"}
            for n in range(30 + number)
        ]
        lines = [json.dumps(row) for row in rows] + (["{broken"] if number % 3 == 0 else [])
        (source / f"{number}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {"max_length": 128, "num_spliced_dataset_bins": NUM_PARTS, "num_workers": 1, "on_bad_record": "skip"}
    words = [str(word) for pair in options.items() for word in (f"--{pair[0]}", pair[1])]
    return ["--data_input_dirs", str(source), "--tokenizer_dir", str(tokenizer_dir), *words]


def _make_templates(command: list[str], work_dir: Path) -> dict[str, list[Path]]:
    complete = work_dir / "complete"
    ended = run_here([*command, "--data_output_dirs", str(complete)])
    assert ended.code == 0, ended.stderr
    killed: list[Path] = []
    for number, stop in enumerate(STOPS):
        killed.append(work_dir / f"killed-{number}")
        _run_until(stop, [*command, "--data_output_dirs", str(killed[-1])], killed[-1], complete)
    return {COMPLETE: [complete], HALF_FINISHED: killed}


_KILLS_ITSELF = """
import os, signal, sys
from colossal_llama.dataset.prepare import pipeline
from colossal_llama.dataset.prepare.cli import prepare_pretrain

def dying(function):
    def call(*values):
        global left
        result = function(*values)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

owner, name, left = (pipeline.PartPlan if sys.argv[1] == "save" else pipeline), sys.argv[1], int(sys.argv[2])
setattr(owner, name, dying(getattr(owner, name)))
del sys.argv[1:3]
prepare_pretrain()
"""


def _run_until(stop: str, command: list[str], output: Path, complete: Path) -> None:
    """Lets the command kill itself (SIGKILL) when it has come so far."""
    words = stop.split()
    count, unit = (int(words[0]), words[1].rstrip("s")) if len(words) > 1 else (1, stop)
    function = {"chunk": "process_chunk", "plan": "save", "part": "write_part"}[unit]
    if stop.endswith("repair"):
        shutil.copytree(complete, output)
        shutil.rmtree(output / "arrow" / "part-00001")
    ended = run_command(["-c", _KILLS_ITSELF, function, str(count), *command], timeout_s=300)
    assert ended.code == -signal.SIGKILL, ended.stderr


def content(directory: Path) -> dict[str, bytes]:
    """Everything in a preparation, but locks and what tells how long it took."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b"a directory"
        for path in sorted(directory.rglob("*"))
        if path.name not in UNVERIFIED and not path.name.startswith(".lock")
    }


def run_here(command: list[str]) -> Ended:
    """Runs prepare_pretrain_dataset.py with these arguments in this process."""
    begin, arguments = time.monotonic(), sys.argv
    stdout, stderr = io.StringIO(), io.StringIO()
    sys.argv = ["prepare_pretrain_dataset.py", *command]
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            run_main(prepare_pretrain)
        code: int | None = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except Exception:
        code = 1
        stderr.write(traceback.format_exc())
    finally:
        sys.argv = arguments
    return Ended(code, stdout.getvalue(), stderr.getvalue(), time.monotonic() - begin)


# ------------------------------------------------------------------------------------------ damages


def kind_of(name: str) -> str:
    """Kind of a file by its path in the output directory: numbers left out."""
    return re.sub(r"-[\d.]*\d(?:-of-\d+)?", "", name)


def _choose_file(chance: random.Random, output: Path) -> tuple[str, Path]:
    """A file of a kind: kinds are equally likely, however many files they have."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    by_kind = {kind: list(group) for kind, group in itertools.groupby(sorted(files, key=_kind(output)), _kind(output))}
    kind = chance.choice(sorted(by_kind))
    return kind, chance.choice(by_kind[kind])


def _kind(output: Path) -> Callable[[Path], str]:
    return lambda path: kind_of(str(path.relative_to(output)))


def _flip(chance: random.Random, file: Path, _: Path) -> str:
    data = bytearray(file.read_bytes())
    place = chance.randrange(len(data)) if data else 0
    if data:
        data[place] ^= 1 << chance.randrange(8)
    file.write_bytes(bytes(data))
    return f"{file.name}, byte {place:,}"


def _truncate(chance: random.Random, file: Path, _: Path) -> str:
    size = chance.randrange(max(file.stat().st_size, 1))
    os.truncate(file, size)
    return f"{file.name} to {size:,} bytes"


def _extend(chance: random.Random, file: Path, _: Path) -> None:
    with file.open("ab") as opened:
        opened.write(chance.randbytes(chance.randint(1, 64)))


def _swap(_: random.Random, file: Path, other: Path) -> str:
    first, second = file.read_bytes(), other.read_bytes()
    file.write_bytes(second)
    other.write_bytes(first)
    return f"{file.parent.name}/{file.name} and {other.parent.name}/{other.name}"


def _replace(_: random.Random, file: Path, other: Path) -> str:
    file.write_bytes(other.read_bytes())
    return f"{file.parent.name}/{file.name} by {other.parent.name}/{other.name}"


def _to_directory(_: random.Random, file: Path, __: Path) -> None:
    file.unlink()
    file.mkdir()


def _to_full_directory(chance: random.Random, file: Path, other: Path) -> None:
    _to_directory(chance, file, other)
    (file / "precious.txt").write_text("precious", encoding="utf-8")


def _remove_directory(_: random.Random, file: Path, __: Path) -> str:
    shutil.rmtree(file.parent) if file.parent.name not in ("out", "cache") else file.unlink()
    return f"{file.parent.name}/{file.name}"


def _written(text: str) -> Callable[[random.Random, Path, Path], None]:
    def write(_: random.Random, file: Path, __: Path) -> None:
        file.write_text(text, encoding="utf-8")

    return write


DAMAGES: dict[str, Callable[[random.Random, Path, Path], str | None]] = {
    "byte flipped": _flip,
    "cut off": _truncate,
    "extended": _extend,
    "emptied": _written(""),
    "deleted": lambda chance, file, other: file.unlink(),
    "its directory deleted": _remove_directory,
    "another file's content": _replace,
    "swapped": _swap,
    "a directory": _to_directory,
    "a directory that holds a file": _to_full_directory,
    "[]": _written("[]"),
    "null": _written("null"),
    "{}": _written("{}\n"),
    "somebody's JSON": _written('{"name": "somebody else\'s", "identity": 3, "parts": {}, "index": null}'),
    "nested JSON": _written("[" * 100_000),
}
