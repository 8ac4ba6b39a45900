r"""Dirties a corpus: duplicates, boilerplate, personal data, benchmark questions, garbage.

    python benchmarks/dirty_corpus.py --corpus_dir corpus --eval_dir eval --output_dir dirty

`dirty/documents/` has the files of the corpus. A record that is changed keeps its file and line;
new records come behind those of a file. `dirty/planted.jsonl` says of each planted thing what it is
(`kind`), where it is (`file`, `line`), what should happen to it (`expected`: drop, cut, mask, or
keep for what only looks like it), and how it shows (`value`, `original`, `jaccard`, `question`).
`dirty/blocklist.txt` has the made-up words of a blocklist. A document gets one kind of things.
benchmarks/cleaning_quality.py compares this record with what the cleaning did.
"""

import random
import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # run by its path: the project's root is the import root
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import orjson

from benchmarks.dirty_texts import (
    GARBAGE,
    LOOK_ALIKES,
    PERSONAL_DATA,
    is_without_spaces,
    near_duplicate,
    rewritten_without_change,
    sentence_with,
    unit_spans,
)
from colossal_llama.utils.atomic_io import atomic_directory
from colossal_llama.utils.cli import (
    CollectingArgumentParser,
    creatable_directory,
    existing_directory,
    number_in_range,
)
from colossal_llama.utils.console import table
from colossal_llama.utils.errors import UserError, run_main

PARAGRAPH_MARK = "Planted paragraph"
SIMILARITIES = (0.95, 0.9, 0.85, 0.8, 0.6, 0.5, 0.4)
_LEAST_DUPLICATE = 0.8
_HOST_CHARACTERS = (400, 20_000)
_LEAST_UNITS = 120
_PARAGRAPH_COPIES = 5
_BOILERPLATE_SHARE = 0.3
_LEAST_DOCUMENTS, _LEAST_BOILERPLATE_SHARE = 12, 0.12  # of a file that gets boilerplate
_MOST_BOILERPLATE_DOCUMENTS = 1000  # of a file
_BOILERPLATE = (
    "本页内容由网站编辑整理 未经许可不得转载 编号 {}",
    "上一篇 下一篇 返回目录 分享到朋友圈 收藏本页 {}",
    "Sign up for our weekly letter and never miss a story again {}",
)
_BLOCKED_WORDS = ("幸运转盘赔率", "秒开奖平台", "jackpotvillage", "luckyspinbonus")
_QUESTION_WORDS, _QUESTION_CHARACTERS = 16, 26  # a margin over n-grams of 13 words, 20 characters
_PART_WORDS, _PART_CHARACTERS = 8, 12


def main() -> None:
    """Reads the corpus, plants, and writes it with the record."""
    arguments = parse_arguments()
    corpus = DirtiedCorpus(arguments.corpus_dir, arguments.seed)
    corpus.plant_duplicates(arguments.each, arguments.copies)
    corpus.plant_paragraphs(max(1, arguments.each // _PARAGRAPH_COPIES))
    corpus.plant_personal_data(arguments.each)
    if arguments.eval_dir:
        corpus.plant_questions(questions_of(arguments.eval_dir), arguments.each)
    corpus.plant_blocked_words(arguments.each)
    corpus.plant_garbage(arguments.garbage or arguments.each)
    corpus.plant_site(3 * arguments.each)
    corpus.plant_boilerplate()
    corpus.write(arguments.output_dir)
    counts = Counter((entry["kind"], entry["expected"]) for entry in corpus.planted)
    print(table(["kind", "expected", "planted"], [[*key, count] for key, count in counts.items()]))


def parse_arguments() -> Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus_dir", type=existing_directory, required=True, help="pre-training records, .jsonl")
    parser.add_argument("--eval_dir", type=existing_directory, help="a folder for each benchmark (none are planted)")
    parser.add_argument("--output_dir", type=creatable_directory, required=True, help="must not exist")
    parser.add_argument("--each", type=number_in_range(int, minimum=1), default=100, help="things of each kind")
    parser.add_argument("--copies", type=number_in_range(int, minimum=1), default=1, help="of each duplicated document")
    parser.add_argument(
        "--garbage", type=number_in_range(int, minimum=1), help="documents of each kind of garbage (default: --each)"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.output_dir.exists():
        parser.problem(f"--output_dir {arguments.output_dir} exists: give a new one, or remove it")
    parser.finish()
    return arguments


def questions_of(eval_dir: Path) -> list[dict[str, str]]:
    """Reads the wordings of benchmark questions that are long enough to be found, shuffled."""
    from colossal_llama.evaluation.tasks.registry import TASKS, open_tasks

    found = []
    for name in TASKS:
        try:
            subjects = open_tasks([name], eval_dir)
        except UserError:  # no files of this benchmark
            continue
        for subject in subjects:
            for question in subject.questions:
                text = _wording(question.text)
                least = _QUESTION_CHARACTERS if is_without_spaces(text) else _QUESTION_WORDS
                if len(unit_spans(text)) >= least:
                    found.append({"text": text, "question": f"{name}/{subject.name}/{question.index}"})
    random.Random(0).shuffle(found)
    return found


def _wording(prompt: str) -> str:
    r"""Cuts the prompt's words and the options off a question.

    >>> _wording("Question: How many?\nA. 1\nB. 2\nAnswer: ")
    'How many?'
    """
    text = re.split(r"\n(?:A\.|Answer|答案|Let's think)|从以下选项", prompt, maxsplit=1)[0]
    return re.sub(r"^(?:Question|题目|问题)[:：]\s*|^\d+\s*[.．]\s*", "", text).strip()


class DirtiedCorpus:
    """The records of a corpus by file, which are changed and added to.

    Args:
        directory: files of pre-training records, .jsonl.
        seed: of all choices.
    """

    def __init__(self, directory: Path, seed: int):
        self._generator = random.Random(seed)
        self.files: dict[str, list[dict[str, Any]]] = {
            str(path.relative_to(directory)): [orjson.loads(line) for line in path.open("rb")]
            for path in sorted(directory.rglob("*.jsonl"))
        }
        self.planted: list[dict[str, Any]] = []
        places = [
            (name, at)
            for name, records in self.files.items()
            for at, record in enumerate(records)
            if _HOST_CHARACTERS[0] <= len(record["target"]) <= _HOST_CHARACTERS[1]
            and len(unit_spans(record["target"][:4000])) >= _LEAST_UNITS
        ]
        self._generator.shuffle(places)
        self._hosts = iter(places)
        self._taken: set[tuple[str, int]] = set()
        sentences = (sentence for name, at in places[:500] for sentence in _sentences(self.files[name][at]["target"]))
        self._sentences = list(dict.fromkeys(sentences))

    def _host(self) -> tuple[str, int]:
        """File and place of a document that nothing was planted in.

        Raises:
            UserError: there is none left.
        """
        place = next(self._hosts, None)
        if place is None:
            raise UserError("--corpus_dir has too few documents of 400 to 20,000 characters: give a smaller --each")
        self._taken.add(place)
        return place

    def _add(self, text: str, like: str, kind: str, expected: str, **facts: Any) -> None:
        """Adds a record to a random file of the directory that a file is in."""
        near = [name for name in self.files if Path(name).parent == Path(like).parent]
        name = self._generator.choice(near)
        self.files[name].append({"source": "", "target": text, "category": self.files[like][0]["category"]})
        self._taken.add((name, len(self.files[name]) - 1))
        self._note(name, len(self.files[name]) - 1, kind, expected, **facts)

    def _note(self, name: str, at: int, kind: str, expected: str, **facts: Any) -> None:
        self.planted.append({"kind": kind, "expected": expected, "file": name, "line": at + 1, **facts})

    def _insert(self, place: tuple[str, int], lines: Sequence[str]) -> None:
        """Puts lines into a document, each behind a random line outside code blocks."""
        record = self.files[place[0]][place[1]]
        text = record["target"].split("\n")
        for line in lines:
            fences = accumulate(each.lstrip().startswith(("```", "~~~")) for each in text)
            outside = [at for at, number in enumerate(fences, 1) if number % 2 == 0] or [len(text)]
            text.insert(self._generator.choice(outside), line)
        record["target"] = "\n".join(text)

    def plant_duplicates(self, each: int, copies: int) -> None:
        """Adds exact copies, copies in another form, and changed ones at each similarity."""
        for _ in range(each):
            for kind in ("exact_duplicate", "rewritten_duplicate"):
                name, at = self._host()
                for _ in range(copies):
                    text = self.files[name][at]["target"]
                    if kind == "rewritten_duplicate":
                        text = rewritten_without_change(text, self._generator)
                    self._add(text, name, kind, "drop", original={"file": name, "line": at + 1})
            for similarity in SIMILARITIES:
                name, at = self._host()
                for _ in range(copies):
                    text, exact = near_duplicate(self.files[name][at]["target"], similarity, self._generator)
                    facts = {"original": {"file": name, "line": at + 1}, "jaccard": round(exact, 4)}
                    expected = "drop" if similarity >= _LEAST_DUPLICATE else "keep"
                    self._add(text, name, f"near_duplicate_{similarity}", expected, **facts)

    def plant_paragraphs(self, count: int) -> None:
        """Copies a paragraph of a document into others, as news agencies' texts are."""
        for number in range(count):
            sentences = self._generator.sample(self._sentences, min(6, len(self._sentences)))
            mark = f"{PARAGRAPH_MARK} {number}:"
            paragraph = " ".join([mark, *sentences])
            places = [self._host() for _ in range(_PARAGRAPH_COPIES)]
            for copy, (name, at) in enumerate(sorted(places)):
                self._insert((name, at), [f"\n{paragraph}\n"])
                self._note(name, at, "repeated_paragraph", "cut" if copy else "keep", value=mark)

    def plant_personal_data(self, each: int) -> None:
        """Writes one of each kind into a document, or what only looks like it."""
        for _ in range(each):
            for makers, expected in ((PERSONAL_DATA, "mask"), (LOOK_ALIKES, "keep")):
                name, at = self._host()
                without_spaces = is_without_spaces(self.files[name][at]["target"])
                values = {kind: make(self._generator) for kind, make in makers.items()}
                lines = [
                    sentence_with(kind, value, without_spaces, expected == "mask") for kind, value in values.items()
                ]
                self._insert((name, at), lines)
                for kind, value in values.items():
                    self._note(name, at, kind, expected, value=value)

    def plant_questions(self, questions: Sequence[dict[str, str]], each: int) -> None:
        """Writes questions into documents: as they are, in another form, and parts of them.

        Raises:
            UserError: there are too few questions.
        """
        if len(questions) < 3 * each:
            raise UserError(f"--eval_dir has {len(questions):,} questions that are long enough, --each {each} needs 3x")
        kinds = (("benchmark_question", "drop"), ("benchmark_rewritten", "drop"), ("benchmark_part", "keep"))
        for at, question in enumerate(questions[: 3 * each]):
            kind, expected = kinds[at % 3]
            place = self._host()
            text = question["text"]
            if kind == "benchmark_rewritten":
                text = re.sub(r"\s+", "  ", text).upper().replace(",", " ,").replace("，", ", ")
            if kind == "benchmark_part":
                spans = unit_spans(text)
                units = _PART_CHARACTERS if is_without_spaces(text) else _PART_WORDS
                text = text[spans[0][0] : spans[units - 1][1]]
            self._insert(place, [text])
            self._note(*place, kind, expected, value=text, question=question["question"])

    def plant_blocked_words(self, each: int) -> None:
        """Writes words of blocklist.txt into documents, three in each."""
        for _ in range(each):
            place = self._host()
            words = [self._generator.choice(_BLOCKED_WORDS) for _ in range(3)]
            self._insert(place, [f"{word}，{word}." for word in words])
            self._note(*place, "blocked_words", "drop")

    def plant_garbage(self, each: int) -> None:
        """Adds documents of every kind of garbage to files of all directories in turn."""
        folders = sorted({str(Path(name).parent): name for name in self.files}.values())
        for number in range(each):
            for kind, make in GARBAGE.items():
                text = make(self._generator, self._sentences)
                self._add(text, folders[number % len(folders)], kind, "drop")

    def plant_site(self, documents: int) -> None:
        """Makes documents of all files pages of a web site, two thirds of which have its footer."""
        footer = "网站备案信息与联系方式见页面底部说明 All rights of the site are reserved"
        for number in range(documents):
            name, at = self._host()
            self.files[name][at]["url"] = f"https://www.site.example/{number // 10}/page-{number}.html"
            if number % 3:
                self._insert((name, at), [footer])
                self._note(name, at, "boilerplate_of_a_site", "cut", value=footer)

    def plant_boilerplate(self) -> None:
        """Writes the same lines into many documents of a file, and a line to stay into three."""
        for number, (name, records) in enumerate(self.files.items()):
            free = [
                at
                for at, record in enumerate(records)
                if (name, at) not in self._taken and len(record["target"]) >= _HOST_CHARACTERS[0]
            ]
            size = min(int(_BOILERPLATE_SHARE * len(records)), _MOST_BOILERPLATE_DOCUMENTS, len(free))
            if size < max(_LEAST_DOCUMENTS, _LEAST_BOILERPLATE_SHARE * len(records)):
                continue
            chosen = self._generator.sample(free, size)
            lines = [line.format(number) for line in _BOILERPLATE]
            rare = f"Only three pages have this line, number {number}."
            for at in chosen:
                self._insert((name, at), [*lines, *([rare] if at in chosen[:3] else [])])
                self._taken.add((name, at))
                for line in lines:
                    self._note(name, at, "boilerplate", "cut", value=line)
                if at in chosen[:3]:
                    self._note(name, at, "boilerplate", "keep", value=rare)

    def write(self, directory: Path) -> None:
        """Writes the documents, the record, and the blocklist."""
        with atomic_directory(directory) as temporary:
            for name, records in self.files.items():
                path = temporary / "documents" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"".join(_lines(records)))
            (temporary / "planted.jsonl").write_bytes(b"".join(_lines(self.planted)))
            (temporary / "blocklist.txt").write_text("\n".join(_BLOCKED_WORDS) + "\n", encoding="utf-8")


def _sentences(text: str) -> list[str]:
    """Lines of a text that are long enough to make garbage of."""
    return [line.strip() for line in text.split("\n") if 40 <= len(line.strip()) <= 300]


def _lines(records: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    return (orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records)


if __name__ == "__main__":
    run_main(main)
