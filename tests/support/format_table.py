"""The table of docs/data.md: which script reads which format, found by running each.

    python -m tests.support.format_table            print the table
    python -m tests.support.format_table --write    write it into docs/data.md

A cell says that the script makes of the files exactly what it makes of the same records as jsonl.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.data_files import COMPRESSIONS, FORMATS, Format, compressed, json_array, json_lines
from tests.support.format_scripts import SCRIPTS, Refused, Script

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "data.md"
BEGIN, END = "<!-- formats: begin -->", "<!-- formats: end -->"
DIRECTORY = "corpus"
"""Name of the directory of the files, which is the category of texts."""

SENTENCES = (
    "茶馆里坐满了下棋的老人，窗外下着小雨。",
    "The ferry leaves at noon, and nobody waits for the mail.",
    "山里的茶馆只有一张桌子，老人每天在那里写信。",
    'She said "stay", folded the map, and went north.',
    "下雨的时候，老人把棋盘搬进茶馆，继续下棋。",
    "A lamp, a ladder, and a long list of names: that is all that the lighthouse holds.",
)


def documents() -> list[dict]:
    """Records of two categories, with line ends, quotation marks and Chinese."""
    records = []
    for number in range(12):
        language = ("zh", "en")[number % 2]
        lines = [SENTENCES[(number + 2 * step) % 6] for step in range(3)]
        source = f"{number}: " if number % 3 == 0 else ""
        records.append({"source": source, "target": "\n".join(lines), "category": language})
    return records


def conversations() -> list[dict]:
    """Records of messages."""
    return [
        {
            "messages": [
                {"from": "human", "content": f"{SENTENCES[number % 6]} ({number})"},
                {"from": "assistant", "content": SENTENCES[(number + 1) % 6]},
            ],
            "category": ("zh", "en")[number % 2],
        }
        for number in range(8)
    ]


def records_of(script: Script, form: Format | None = None) -> list[dict]:
    """Records for a script, such as a format can hold."""
    if form is not None and form.is_text:
        return [{"text": record["target"]} for record in documents()]
    if script.kind == "documents":
        return documents()
    if form is not None and form.name == "`.csv`":
        return [
            {"instruction": SENTENCES[number % 6], "output": SENTENCES[(number + 1) % 6], "category": "default"}
            for number in range(8)
        ]
    return conversations()


class Bench:
    """Runs scripts in a directory, and compares what they make of the same records.

    Attributes:
        tokenizer: of LLaMA-2's kind.
        root: directory for all files, which may be read by another run in this process.
    """

    def __init__(self, tokenizer: Path, root: Path):
        self.tokenizer = tokenizer
        self.root = root
        self._expected: dict[str, Any] = {}

    def fresh(self) -> Path:
        """Returns a new directory for a cell."""
        return Path(tempfile.mkdtemp(dir=self.root))

    def expected(self, script: Script, records: Sequence[dict]) -> Any:
        """Returns what a script makes of the records as one jsonl file."""
        key = f"{script.name} {json_lines(records)!r}"
        if key not in self._expected:
            place = self.fresh() / DIRECTORY
            place.mkdir()
            (place / "all.jsonl").write_bytes(json_lines(records))
            self._expected[key] = script.run(_given(script, place), self.tokenizer, self.fresh())
        return self._expected[key]

    def outcome(self, script: Script, words: Sequence[str], records: Sequence[dict]) -> str:
        """Compares what a script makes of paths with what it makes of the records.

        Returns:
            `equal`, `different`, or the first line of the refusal.
        """
        expected = self.expected(script, records)
        try:
            found = script.run(words, self.tokenizer, self.fresh())
        except Refused as refusal:
            return str(refusal).splitlines()[0]
        return "equal" if found == expected else "different"


# ------------------------------------------------------------------------------ formats


def format_outcome(bench: Bench, form: Format, compression: str, script: Script) -> str:
    """Runs one script on one format in one compression; see `Bench.outcome`."""
    records = records_of(script, form)
    place = bench.fresh() / DIRECTORY
    place.mkdir()
    form.write(place, records, compression)
    words = _given(script, place) if form.given == ("",) else [str(place / name) for name in form.given]
    return bench.outcome(script, words, records)


def _given(script: Script, place: Path) -> list[str]:
    """What is named on the command line: the directory, or for --eval_file the file in it."""
    found = list(place.iterdir())
    return [str(found[0] if script.name.endswith("--eval_file") and len(found) == 1 else place)]


def applies(form: Format, compression: str, script: Script) -> bool:
    """False where a cell has no meaning: a compressed directory, a conversation in a plain text."""
    if form.is_text and script.kind == "conversations":
        return False
    return form.is_compressible or not compression


def format_row(bench: Bench, form: Format) -> list[str]:
    """Cells of a format: the compressions in which each script reads it."""
    cells = [form.name]
    for script in SCRIPTS:
        tried = [compression for compression in COMPRESSIONS if applies(form, compression, script)]
        read = [item for item in tried if format_outcome(bench, form, item, script) == "equal"]
        cells.append(_cell(tried, read))
    return cells


def _cell(tried: Sequence[str], read: Sequence[str]) -> str:
    if not tried:
        return "–"
    if read == tried:
        return "yes"
    return " ".join(f"`{item}`" if item else "plain" for item in read) or "no"


# -------------------------------------------------------------------------------- paths


@dataclass(frozen=True)
class PathForm:
    """A way to name the data on the command line.

    Attributes:
        name: as the table shows it.
        words: writes records into a directory, and returns the words that name them.
    """

    name: str
    words: Callable[[Path, Sequence[dict]], list[str]]


def _halves(place: Path, records: Sequence[dict]) -> list[Path]:
    """Two directories, each with a file of half of the records."""
    half = len(records) // 2
    for name, part in (("a", records[:half]), ("b", records[half:])):
        (place / name).mkdir()
        (place / name / "all.jsonl").write_bytes(json_lines(part))
    return [place / "a", place / "b"]


def _files_of_halves(place: Path, records: Sequence[dict]) -> list[str]:
    return [str(directory / "all.jsonl") for directory in _halves(place, records)]


def _in_capitals(place: Path, records: Sequence[dict]) -> list[str]:
    (place / "ALL.JSON.GZ").write_bytes(compressed(json_array(records), ".gz"))
    return [str(place)]


def _nested(place: Path, records: Sequence[dict]) -> list[str]:
    _halves(place, records)
    return [str(place)]


def _url_of_files(place: Path, records: Sequence[dict]) -> list[str]:
    _halves(place, records)
    return [f"file://{place}"]


def _url_of_memory(place: Path, records: Sequence[dict]) -> list[str]:
    import fsspec

    name = f"memory://{place.parent.name}/{DIRECTORY}"
    with fsspec.open(f"{name}/all.jsonl.gz", "wb") as file:
        file.write(compressed(json_lines(records), ".gz"))
    return [name]


def _url_of_a_file(place: Path, records: Sequence[dict]) -> list[str]:
    return [f"{_url_of_memory(place, records)[0]}/all.jsonl.gz"]


PATHS = (
    PathForm("a file", lambda place, records: [_one_file(place, records)]),
    PathForm("a directory with directories in it", _nested),
    PathForm("directories by commas", lambda place, records: [",".join(map(str, _halves(place, records)))]),
    PathForm("directories as several arguments", lambda place, records: list(map(str, _halves(place, records)))),
    PathForm("files by commas", lambda place, records: [",".join(_files_of_halves(place, records))]),
    PathForm("files as several arguments", _files_of_halves),
    PathForm(
        "a file and a directory",
        lambda place, records: [_files_of_halves(place, records)[0], str(place / "b")],
    ),
    PathForm("an ending in capitals", _in_capitals),
    PathForm("`file://` directory", _url_of_files),
    PathForm("`memory://` directory", _url_of_memory),
    PathForm("`memory://` file", _url_of_a_file),
)


def _one_file(place: Path, records: Sequence[dict]) -> str:
    (place / "all.jsonl").write_bytes(json_lines(records))
    return str(place / "all.jsonl")


def path_outcome(bench: Bench, form: PathForm, script: Script) -> str:
    """Runs one script on paths that are given in one way; see `Bench.outcome`."""
    records = records_of(script)
    place = bench.fresh() / DIRECTORY
    place.mkdir()
    return bench.outcome(script, form.words(place, records), records)


def path_row(bench: Bench, form: PathForm) -> list[str]:
    """Cells of a way to name the data."""
    return [form.name, *("yes" if path_outcome(bench, form, script) == "equal" else "no" for script in SCRIPTS)]


# ---------------------------------------------------------------------------- the table


@contextmanager
def temporary_bench() -> Iterator[Bench]:
    """Makes a tokenizer and a directory for the runs."""
    from tests.support.made_data import make_llama2

    with tempfile.TemporaryDirectory() as root:
        yield Bench(make_llama2(Path(root) / "tokenizer"), Path(root))


def tables(bench: Bench) -> str:
    """Both tables: formats, and ways to name the data."""
    names = [f"`{script.name}`" for script in SCRIPTS]
    rows = [["format", *names], *(format_row(bench, form) for form in FORMATS)]
    ways = [["data given as", *names], *(path_row(bench, form) for form in PATHS)]
    return f"{markdown(rows)}\n\n{markdown(ways)}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def with_tables(text: str, tables: str) -> str:
    """The document with fresh tables between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main() -> None:
    """Prints the tables, or writes them into the document; `--why` prints what refuses a cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write the tables into {DOCUMENT.name}")
    parser.add_argument("--why", action="store_true", help="print the outcome of every cell that is not equal")
    options = parser.parse_args()
    with temporary_bench() as bench:
        if options.why:
            for line in refusals(bench):
                print(line, flush=True)
            return
        made = tables(bench)
    if options.write:
        DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(made)


def refusals(bench: Bench) -> Iterator[str]:
    """The outcome of every cell that is not equal."""
    for form in FORMATS:
        for script in SCRIPTS:
            for compression in (item for item in COMPRESSIONS if applies(form, item, script)):
                outcome = format_outcome(bench, form, compression, script)
                if outcome != "equal":
                    yield f"{form.name} {compression} {script.name}: {outcome}"
    for path_form in PATHS:
        for script in SCRIPTS:
            outcome = path_outcome(bench, path_form, script)
            if outcome != "equal":
                yield f"{path_form.name} {script.name}: {outcome}"


if __name__ == "__main__":
    main()
