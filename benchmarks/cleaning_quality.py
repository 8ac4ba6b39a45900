r"""Measures a cleaning on a corpus that was dirtied on purpose: recall and precision of each kind.

    colossal-llama clean --data_input_dirs corpus --output_dir base
    python benchmarks/dirty_corpus.py --corpus_dir base/documents --eval_dir eval --output_dir dirty
    colossal-llama clean --data_input_dirs dirty/documents --output_dir cleaned \
        --decontaminate eval --blocklist made_up=dirty/blocklist.txt \
        --on language --set language.allowed=[zh,en]
    python benchmarks/cleaning_quality.py --dirty_dir dirty --cleaned_dir cleaned

The corpus that is dirtied is a cleaned one, so that whatever is dropped besides was planted, or is
a mistake. `found` and `missed` are of what should be dropped, cut or masked. `elsewhere` is what
another rule dropped first, and counts for neither. `false` is what only looks like it, and was
dropped, cut or masked; the look-alikes are documents of lower similarity, parts of questions,
numbers with a wrong check digit, lines of three documents. A pair of duplicates is found where one
of the two was dropped.
"""

import sys
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import orjson

from benchmarks.dirty_texts import GARBAGE, PERSONAL_DATA, sentence_beginnings
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.cli import CollectingArgumentParser, existing_directory
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import run_main

Place = tuple[str, int]
_ACROSS_DOCUMENTS = ("exact_duplicates", "near_duplicates", "duplicate_paragraphs", "boilerplate")
_ACCEPTED = {
    "exact_duplicate": ("exact_duplicates",),
    "rewritten_duplicate": ("exact_duplicates", "near_duplicates"),
    "near_duplicate": ("near_duplicates",),
    "benchmark": ("decontamination",),
    "blocked_words": ("blocklist",),
}
"""By beginning of the kind: beginnings of the reasons that are right."""
_LINES = ("boilerplate", "boilerplate_of_a_site", "repeated_paragraph")
_EXAMPLES = 10


@dataclass
class Score:
    """Counts of one kind.

    Attributes:
        found: dropped, cut or masked as it should be.
        missed: still there.
        elsewhere: in a document that another rule has dropped.
        false: look-alikes that were dropped, cut or masked.
        left: look-alikes that are still there.
        reasons: of the dropped documents.
        examples: places of what is missed or false.
    """

    found: int = 0
    missed: int = 0
    elsewhere: int = 0
    false: int = 0
    left: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    @property
    def recall(self) -> float | None:
        """Share of what was to be found; None where nothing was."""
        return self.found / (self.found + self.missed) if self.found + self.missed else None

    @property
    def precision(self) -> float | None:
        """Share of what was found, among that and look-alikes; None where nothing was found."""
        return self.found / (self.found + self.false) if self.found + self.false else None

    def add(self, expected_to_stay: bool, is_gone: bool, entry: dict[str, Any], reason: str | None = None) -> None:
        """Counts a planted thing."""
        name = ("false" if is_gone else "left") if expected_to_stay else ("found" if is_gone else "missed")
        setattr(self, name, getattr(self, name) + 1)
        if reason:
            self.reasons[reason] += 1
        if name in ("false", "missed") and len(self.examples) < _EXAMPLES:
            self.examples.append(f"{name}: {entry['file']}:{entry['line']} {entry.get('value', '')}"[:200])


def main() -> None:
    """Compares record and output, and prints the table."""
    arguments = parse_arguments()
    planted = list(_records(arguments.dirty_dir / "planted.jsonl"))
    dropped = dropped_places(arguments.cleaned_dir / "dropped")
    scores = score_all(planted, dropped, OutputLines(arguments.cleaned_dir / "documents", planted))
    others = dropped_besides(planted, dropped)
    rows = [
        [kind, s.found, s.missed, s.elsewhere, s.false, s.left, _share(s.recall), _share(s.precision)]
        for kind, s in scores.items()
    ]
    print(table(["kind", "found", "missed", "elsewhere", "false", "left", "recall", "precision"], rows))
    print("\nreasons by kind:")
    for kind, score in scores.items():
        if score.reasons:
            print(f"  {kind}: {', '.join(f'{reason} {count:,}' for reason, count in score.reasons.most_common())}")
    print(f"\ndropped, and not planted: {dict(Counter(reason for reason, _ in others))}")
    if arguments.output:
        content = {kind: {**vars(s), "recall": s.recall, "precision": s.precision} for kind, s in scores.items()}
        examples: dict[str, list[str]] = defaultdict(list)
        for reason, (file, line) in others:
            examples[reason].append(f"{file}:{line}")
        write_json(arguments.output, {"kinds": content, "not_planted": examples})


def parse_arguments() -> Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dirty_dir", type=existing_directory, required=True, help="from dirty_corpus.py")
    parser.add_argument("--cleaned_dir", type=existing_directory, required=True, help="output of clean_corpus")
    parser.add_argument("--output", type=Path, help="a json file for all figures, with examples")
    arguments = parser.parse_args()
    parser.finish()
    return arguments


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def dropped_places(directory: Path) -> dict[Place, str]:
    """The reason of each dropped document, by its file below `documents`, and line."""
    return {
        (record["file"].partition("/")[2], record["position"]): record["reason"]
        for path in sorted(directory.glob("*.jsonl"))
        for record in _records(path)
    }


class OutputLines:
    """Lines of the cleaned documents: those with planted values, and how often planted lines occur.

    Args:
        directory: of the cleaned documents.
        planted: what was planted.
    """

    def __init__(self, directory: Path, planted: list[dict[str, Any]]):
        beginnings = tuple(sentence_beginnings())
        wanted = {entry["value"] for entry in planted if entry["kind"] in _LINES}
        self.counts: Counter[str] = Counter()
        sentences = []
        for path in sorted(directory.glob("*.jsonl")):
            for record in _records(path):
                for line in record["target"].split("\n"):
                    text = line.strip()
                    if text.startswith(beginnings):
                        sentences.append(text)
                    self.counts.update(value for value in (text, text.partition(":")[0] + ":") if value in wanted)
        self.sentences = "\n".join(sentences)


def score_all(planted: list[dict[str, Any]], dropped: dict[Place, str], output: OutputLines) -> dict[str, Score]:
    """Scores each kind in the order of the record."""
    scores: dict[str, Score] = {}
    for entry in planted:
        score = scores.setdefault(entry["kind"], Score())
        place = entry["file"], entry["line"]
        stays = entry["expected"] == "keep"
        if entry["kind"] in _LINES:
            continue
        if entry["kind"] in PERSONAL_DATA:
            if place in dropped:
                score.elsewhere += 1
            else:
                score.add(stays, entry["value"] not in output.sentences, entry)
            continue
        places = [place]
        if original := entry.get("original"):
            places.append((original["file"], original["line"]))
        reasons = [dropped[each] for each in places if each in dropped]
        right = [reason for reason in reasons if _is_accepted(entry["kind"], reason)]
        if reasons and not right:
            score.elsewhere += 1
            score.reasons[reasons[0]] += 1
        else:
            score.add(stays, bool(right), entry, right[0] if right else None)
    _score_lines(planted, dropped, output, scores)
    return scores


def _score_lines(
    planted: list[dict[str, Any]], dropped: dict[Place, str], output: OutputLines, scores: dict[str, Score]
) -> None:
    """Scores lines that were planted in several documents: how many of them are left."""
    lines: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for entry in planted:
        if entry["kind"] in _LINES:
            lines[entry["kind"], entry["value"]].append(entry)
    for (kind, value), entries in lines.items():
        there = [entry for entry in entries if (entry["file"], entry["line"]) not in dropped]
        scores[kind].elsewhere += len(entries) - len(there)
        left = output.counts[value]
        to_stay = min(len(there), sum(entry["expected"] == "keep" for entry in entries))
        for number, entry in enumerate(there):
            scores[kind].add(number < to_stay, number >= left, entry)


def _is_accepted(kind: str, reason: str) -> bool:
    if kind in GARBAGE:
        return not reason.startswith((*_ACROSS_DOCUMENTS, "decontamination", "blocklist"))
    return reason.startswith(next(reasons for name, reasons in _ACCEPTED.items() if kind.startswith(name)))


def dropped_besides(planted: list[dict[str, Any]], dropped: dict[Place, str]) -> list[tuple[str, Place]]:
    """Dropped documents in which nothing was planted, and of which no copy was."""
    known = {(entry["file"], entry["line"]) for entry in planted}
    known |= {(entry["original"]["file"], entry["original"]["line"]) for entry in planted if "original" in entry}
    return [(reason, place) for place, reason in dropped.items() if place not in known]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    run_main(main)
