"""A cleaning: its arguments as the script would parse them, a made corpus, and what it leaves."""

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from colossal_llama.cleaning.arguments import CleanArguments
from colossal_llama.cleaning.clean_corpus import parse_arguments

_WORDS = (
    "river", "stone", "garden", "window", "letter", "music", "engine", "harvest", "valley", "market", "captain",
    "silver", "answer", "bridge", "candle", "forest", "winter", "summer", "people", "morning", "evening", "teacher",
    "village", "mountain", "island", "student", "picture", "library", "question", "history",
)  # fmt: skip
_HAN = "山水风云日月星光花草树木春夏秋冬东西南北天地人心书画琴棋江河湖海田园村城门窗灯火金银铜铁"
_SMALL = ["length.min_words=20", "length.min_characters=30"]


def cleaning(input_dirs: Sequence[Path], output_dir: Path, *options: str, workers: int = 1) -> CleanArguments:
    """Arguments with rules that made texts can meet; what `options` says comes last."""
    command = ["--data_input_dirs", *input_dirs, "--output_dir", output_dir, "--num_workers", workers]
    return parse_arguments([*map(str, command), "--set", *_SMALL, *options])


def command_line(input_dirs: Sequence[Path], output_dir: Path, *options: str) -> list[str]:
    """The same as words of a command line, after the interpreter."""
    given = ["--data_input_dirs", *input_dirs, "--output_dir", output_dir]
    return ["-m", "colossal_llama", "clean", *map(str, given), "--set", *_SMALL, *options]


def english(seed: int, sentences: int = 12) -> str:
    """A text of different sentences."""
    chance = random.Random(seed)
    made = [" ".join(chance.choices(_WORDS, k=chance.randint(8, 14))).capitalize() + "." for _ in range(sentences)]
    return "\n".join(" ".join(made[first : first + 3]) for first in range(0, sentences, 3))


def chinese(seed: int, sentences: int = 12) -> str:
    """A Chinese text of different sentences."""
    chance = random.Random(seed)
    made = ["".join(chance.choices(_HAN, k=chance.randint(10, 18))) + "。" for _ in range(sentences)]
    return "\n".join("".join(made[first : first + 3]) for first in range(0, sentences, 3))


def document(target: str, category: str = "made", **more: Any) -> dict[str, Any]:
    """A record of pre-training."""
    return {"source": "", "target": target, "category": category, **more}


def write_records(path: Path, records: Iterable[dict]) -> Path:
    """Writes records as JSON lines; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read_records(*paths: Path) -> list[dict]:
    """Records of JSON lines."""
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def kept(output_dir: Path) -> list[dict]:
    """All records of the corpus."""
    return read_records(*sorted((output_dir / "documents").iterdir()))


def dropped(output_dir: Path, reason: str) -> list[dict]:
    """All records that were dropped for a reason."""
    path = output_dir / "dropped" / f"{reason}.jsonl"
    return read_records(path) if path.exists() else []


def content(output_dir: Path) -> dict[str, bytes]:
    """Files of a cleaning by name, without times and locks; the picture depends on the fonts."""
    return {
        str(path.relative_to(output_dir)): path.read_bytes()
        for path in sorted(output_dir.rglob("*"))
        if path.is_file() and path.name not in ("last_run.json", "cleaning.png") and not path.name.startswith(".lock")
    }
