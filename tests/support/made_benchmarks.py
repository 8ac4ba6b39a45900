"""Made-up benchmark files in the layouts of their authors: small, and of nobody's sentences."""

import csv
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

LETTERS = "ABCD"
_ADDED = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def write_benchmarks(directory: Path, questions: int = 8) -> Path:
    """Writes all six sets, each with a few subjects; returns the directory for `--data_dir`."""
    write_mmlu(directory / "mmlu", questions)
    write_cmmlu(directory / "cmmlu", questions)
    write_ceval(directory / "ceval", questions)
    write_agieval(directory / "agieval", questions)
    write_gaokao(directory / "gaokao_bench", questions)
    write_gsm8k(directory / "gsm8k", questions)
    return directory


def write_mmlu(
    directory: Path, questions: int = 8, subjects: Sequence[str] = ("astronomy", "us_foreign_policy", "virology")
) -> None:
    """The authors' archive: no header."""
    for subject in subjects:
        for split, count in (("dev", 5), ("test", questions)):
            rows = made_questions(f"mmlu {subject} {split}", count)
            _write_csv(
                directory / split / f"{subject}_{split}.csv", [[text, *options, label] for text, options, label in rows]
            )


def write_cmmlu(directory: Path, questions: int = 8, subjects: Sequence[str] = ("agronomy", "chinese_history")) -> None:
    """A header and an index column."""
    header = ["", "Question", "A", "B", "C", "D", "Answer"]
    for subject in subjects:
        for split, count in (("dev", 5), ("test", questions)):
            rows = made_questions(f"cmmlu {subject} {split}", count, is_chinese=True)
            lines = [[index, text, *options, label] for index, (text, options, label) in enumerate(rows)]
            _write_csv(directory / split / f"{subject}.csv", [header, *lines])


def write_ceval(
    directory: Path, questions: int = 8, subjects: Sequence[str] = ("computer_network", "plant_protection")
) -> None:
    """Validation split with answers, test split without."""
    header = ["id", "question", "A", "B", "C", "D", "answer"]
    for subject in subjects:
        for split, count in (("dev", 5), ("val", questions), ("test", questions)):
            rows = made_questions(f"ceval {subject} {split}", count, is_chinese=True)
            columns = 7 if split != "test" else 6
            lines = [[index, text, *options, label][:columns] for index, (text, options, label) in enumerate(rows)]
            if split == "dev":
                lines = [[*line, "因为如此。"] for line in lines]
            names = [*header[:columns], *(["explanation"] if split == "dev" else [])]
            _write_csv(directory / split / f"{subject}_{split}.csv", [names, *lines])


def write_agieval(
    directory: Path, questions: int = 8, sets: Sequence[str] = ("logiqa-en", "sat-en", "gaokao-history")
) -> None:
    """Lines of JSON, and the table of examples, whose cells are Python literals."""
    columns = {}
    for name in sets:
        is_chinese = name.startswith("gaokao")
        records = [
            {
                "passage": f"Passage of {name}." if name == "sat-en" else None,
                "question": text,
                "options": [f"({letter}){option}" for letter, option in zip(LETTERS, options, strict=True)],
                "label": label,
                "answer": None,
                "other": None,
            }
            for text, options, label in made_questions(f"agieval {name}", questions + 3, is_chinese)
        ]
        _write_lines(directory / "v1" / f"{name}.jsonl", records[:questions])
        columns[name] = [str(record) for record in records[questions:]]
    rows = [["", *columns]]
    for number in range(3):
        rows.append([f"sample {number + 1}", *(cells[number] for cells in columns.values())])
        rows.append([f"explanation {number + 1}", *("so it is" for _ in columns)])
    _write_csv(directory / "few_shot_prompts.csv", rows)


def write_gaokao(
    directory: Path,
    questions: int = 8,
    sets: Sequence[str] = ("2010-2022_History_MCQs", "2010-2013_English_MCQs"),
) -> None:
    """Objective questions, whose options stand in the question."""
    for name in sets:
        examples = [
            {
                "year": "2010",
                "category": "（made up）",
                "question": text
                + "\n"
                + "  ".join(f"{letter}．{option}" for letter, option in zip(LETTERS, options, strict=True))
                + "\n",
                "answer": [label],
                "analysis": "因为如此。",
                "index": index,
                "score": 4,
            }
            for index, (text, options, label) in enumerate(made_questions(f"gaokao {name}", questions, is_chinese=True))
        ]
        path = directory / "Objective_Questions" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"keywords": name, "example": examples}, ensure_ascii=False), encoding="utf-8")


def write_gsm8k(directory: Path, questions: int = 4) -> None:
    """Sums in words, with worked answers."""
    for split, count in (("train", 20), ("test", questions)):
        draw = random.Random(split)
        records = []
        for _ in range(count):
            first, second = draw.randint(2, 9), draw.randint(2, 9)
            records.append(
                {
                    "question": f"A box holds {first} pens and another holds {second}. How many pens are there?",
                    "answer": f"There are {first} + {second} = <<{first}+{second}={first + second}>>"
                    f"{first + second} pens.\n#### {first + second}",
                }
            )
        _write_lines(directory / f"{split}.jsonl", records)


def write_own_questions(path: Path, questions: int = 6) -> None:
    """A file of one's own: a question with choices a line."""
    _write_lines(
        path,
        [
            {"question": text, "choices": options, "answer": label}
            for text, options, label in made_questions(path.stem, questions)
        ],
    )


def made_questions(name: str, count: int, is_chinese: bool = False) -> list[tuple[str, list[str], str]]:
    """Questions with four options and the letter of the right one; the same for the same name."""
    draw = random.Random(name)
    made = []
    for number in range(count):
        words = draw.sample(_ADDED, 4)
        text = f"第{number}题（{name}）：下列哪一项是对的" if is_chinese else f"Which is number {number} of {name}?"
        options = [f"第{word}项" if is_chinese else f"number {word}" for word in words]
        made.append((text, options, draw.choice(LETTERS)))
    return made


def _write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _write_lines(path: Path, records: Iterable[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
