"""Damaged checkpoints: one file at a time, in every way that a disk, a copy or a person damages it.

Each trial copies two checkpoints of a short run, damages the newer one, and resumes: by its path,
or by `auto`, which should go back to the older one. Good ends are a refusal that names the damage,
a fallback that is said, or the losses and weights of the undisturbed run, bit for bit.
"""

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.campaigns.outcome import REPAIRED, SILENT, WHOLE, WRONG, Ended, Outcome
from tests.support.layouts import LAST_CHECKPOINT_STEP, LAYOUTS, Layout, Runs

WEIGHTS = "modelling/*model*.safetensors"
OPTIMIZER = "optimizer/*.safetensors"
FILES = {
    "weights": WEIGHTS,
    "weight index": "modelling/model.safetensors.index.json",
    "model configuration": "modelling/*config.json",
    "tokenizer": "modelling/tokenizer.json",
    "optimizer shard": OPTIMIZER,
    "optimizer index": "optimizer/index.json",
    "random states": "random_states/*.safetensors",
    "schedule": "lr_scheduler",
    "running states": "running_states.json",
    "checksums": "checksums.json",
    "checksums of the model": "modelling/checksums.json",
}

Damage = Callable[[Path, Path, random.Random], None]
"""Damages a file, given also the same file of the other checkpoint."""


def flip_bit(file: Path, other: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def flip_bit_at_the_end(file: Path, other: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[-1 - rng.randrange(min(64, len(content)))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def zero_a_block(file: Path, other: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    begin = rng.randrange(max(1, len(content) - 512))
    content[begin : begin + 512] = bytes(len(content[begin : begin + 512]))
    file.write_bytes(content)


def truncate(file: Path, other: Path, rng: random.Random) -> None:
    os.truncate(file, rng.randrange(file.stat().st_size))


def empty(file: Path, other: Path, rng: random.Random) -> None:
    os.truncate(file, 0)


def append(file: Path, other: Path, rng: random.Random) -> None:
    with file.open("ab") as opened:
        opened.write(rng.randbytes(8))


def delete(file: Path, other: Path, rng: random.Random) -> None:
    file.unlink()


def replace_by_other_json(file: Path, other: Path, rng: random.Random) -> None:
    file.write_text(rng.choice(("[]", "null", "{}", "0", '"text"', "[[]]")))


def replace_by_directory(file: Path, other: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def replace_by_dangling_link(file: Path, other: Path, rng: random.Random) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def replace_by_link_to_its_copy(file: Path, other: Path, rng: random.Random) -> None:
    file.symlink_to(file.rename(file.parents[file.parent.name != "save"] / f".{file.name}.moved"))


def replace_by_pipe(file: Path, other: Path, rng: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def replace_by_that_of_the_other(file: Path, other: Path, rng: random.Random) -> None:
    shutil.copyfile(other, file)


def swap_with_neighbour(file: Path, other: Path, rng: random.Random) -> None:
    others = [path for path in (*file.parent.iterdir(), *file.parent.parent.iterdir()) if path.is_file()]
    nearest = [(path.parent != file.parent, path.suffix != file.suffix, path) for path in others if path != file]
    neighbour = min(nearest)[2]  # of the next rank, if there is one
    content = file.read_bytes()
    file.write_bytes(neighbour.read_bytes())
    neighbour.write_bytes(content)


def add_a_copy(file: Path, other: Path, rng: random.Random) -> None:
    name = {".safetensors": "model.safetensors", ".json": "generation_config.json"}.get(file.suffix, "notes.md")
    target = file.parent / name
    target = target if target != file and not target.exists() else file.parent / f"additional{file.suffix}"
    shutil.copyfile(other, target)


def leave_a_note(file: Path, other: Path, rng: random.Random) -> None:
    (file.parent / rng.choice(("notes.md", ".DS_Store", ".nfs000001"))).write_text("mine")


DAMAGES: tuple[Damage, ...] = (
    flip_bit,
    flip_bit_at_the_end,
    zero_a_block,
    truncate,
    empty,
    append,
    delete,
    replace_by_other_json,
    replace_by_directory,
    replace_by_dangling_link,
    replace_by_link_to_its_copy,
    replace_by_pipe,
    replace_by_that_of_the_other,
    swap_with_neighbour,
    add_a_copy,
    leave_a_note,
)
HARMLESS = (replace_by_link_to_its_copy, leave_a_note)


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Damages each file of each layout in each way, in random order."""
    rng, runs = random.Random(seed), Runs(work_dir)
    everything = list(itertools.product(LAYOUTS, FILES, DAMAGES, (True, False)))
    for number in range(trials):
        if number % len(everything) == 0:
            rng.shuffle(everything)
        layout, file, damage, by_auto = everything[number % len(everything)]
        yield run_trial(runs, f"trial-{number}", layout, file, damage, by_auto, rng)


def run_trial(
    runs: Runs, name: str, layout: Layout, file_kind: str, damage: Damage, by_auto: bool, rng: random.Random
) -> Outcome:
    """Damages one file of a copy, and resumes."""
    older, newer = runs.copy_checkpoints(layout, name, (LAST_CHECKPOINT_STEP - 2, LAST_CHECKPOINT_STEP))
    found = sorted(newer.glob(FILES[file_kind])) or sorted(newer.glob(WEIGHTS))  # an adapter has no index
    file = rng.choice(found)
    damage(file, older / file.relative_to(newer), rng)
    ended = runs.train(layout, name, "--load_checkpoint", "auto" if by_auto else str(newer))
    outcome = Outcome(
        kind=f"{file_kind}: {damage.__name__.replace('_', ' ')}",
        result=_result(runs, layout, name, newer, ended),
        detail=f"{layout.name}, {'auto' if by_auto else 'by path'}: {damage.__name__} {file.relative_to(newer)}",
        output=ended.last_lines(12),
        duration_s=round(ended.duration_s, 2),
    )
    shutil.rmtree(runs.runner.workspace / name)
    return outcome


def _result(runs: Runs, layout: Layout, name: str, damaged: Path, ended: Ended) -> str:
    result = ended.result()
    if result == WHOLE:
        if runs.differences(layout, name):
            return WRONG
        return REPAIRED if "skipped: " in ended.stdout else WHOLE
    names_a_file = any(path.name in ended.stdout for path in damaged.rglob("*"))
    return result if names_a_file or str(damaged) in ended.stdout else SILENT


def written_without_checksums(checkpoint: Path) -> None:
    """Makes a checkpoint as it was written before there were checksums."""
    for path in (checkpoint, checkpoint / "modelling"):
        (path / "checksums.json").unlink()
    states = json.loads((checkpoint / "running_states.json").read_text())
    del states["checksums"]
    (checkpoint / "running_states.json").write_text(json.dumps(states))
