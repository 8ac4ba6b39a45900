"""Data in the forms in which they are published, a few records each, with what must come of them.

The texts are invented. Each form is written as its public models have it: file format, names of
fields, names of roles, further columns.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.support.data_files import compressed, csv_table, json_array, json_lines, parquet_table, tar_of

HARBOUR = "The harbour office opens at six.\n\nWhoever comes later pays twice, and nobody has ever come later."
KITCHEN = "Peel the quinces under water; they darken in the air.\nBoil them whole, with a slice of lemon."
TOWER = "钟楼每天敲十二下，但是没有人知道是谁在敲。\n镇上的孩子说，那是一只会数数的猫。"
GARDEN = "园子里有三棵石榴树。\n\n祖父说，只有最老的那一棵会在雨后唱歌。"


@dataclass(frozen=True)
class PublicForm:
    """A form of public data.

    Attributes:
        name: as docs/data.md calls it.
        kind: of its records.
        write: writes it into a directory, which is then given to the script.
        expected: what it holds, as records of the scripts' first form.
        options: of the command line, besides those that every preparation needs.
    """

    name: str
    kind: Literal["pretrain", "sft"]
    write: Callable[[Path], None]
    expected: Sequence[dict]
    options: tuple[str, ...] = ()


def _documents(category: str, *texts: str) -> list[dict]:
    return [{"source": "", "target": text, "category": category} for text in texts]


def _conversation(*turns: str, system: str = "", category: str = "default") -> dict:
    messages = [{"from": ("human", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)]
    first = [{"from": "system", "content": system}] if system else []
    return {"messages": [*first, *messages], "category": category}


def _lines(name: str, *records: dict, compression: str = "") -> Callable[[Path], None]:
    return _bytes(name, compressed(json_lines(records), compression))


def _array(name: str, *records: dict) -> Callable[[Path], None]:
    return _bytes(name, json_array(records))


def _bytes(name: str, content: bytes) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)

    return write


def _all(*writers: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        for writer in writers:
            writer(directory)

    return write


def _saved(*records: dict, shards: int = 1) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        from datasets import Dataset

        Dataset.from_list(list(records)).save_to_disk(str(directory), num_shards=shards)

    return write


_TRIP = ("去灯塔的船几点开？", "每天中午一班，下雨也开。", "票在哪里买？", "在码头的面包店。")
_TRIP_ENGLISH = ("When does the boat leave?", "At noon, in any weather.", "Where do I get a ticket?", "At the bakery.")
_BREVITY = "Answer in one sentence."

DOCUMENT_FORMS = (
    PublicForm(
        "documents with `text`",
        "pretrain",
        _all(
            _lines("zh/0.jsonl", {"text": TOWER}, {"text": GARDEN}),
            _lines("en/0.jsonl", {"text": HARBOUR}, {"text": KITCHEN}),
        ),
        [*_documents("en", HARBOUR, KITCHEN), *_documents("zh", TOWER, GARDEN)],
    ),
    PublicForm(
        "documents with `content`",
        "pretrain",
        _lines("books/0.jsonl", {"id": 7, "content": HARBOUR}, {"id": 8, "content": TOWER}),
        _documents("books", HARBOUR, TOWER),
    ),
    PublicForm(
        "documents with `raw_content`, compressed",
        "pretrain",
        _lines(
            "crawl/0000.json.gz",
            {"url": "https://example.org/a", "raw_content": KITCHEN, "nlines": 2, "language": "en"},
            {"url": "https://example.org/b", "raw_content": GARDEN, "nlines": 3, "language": "zh"},
            compression=".gz",
        ),
        _documents("crawl", KITCHEN, GARDEN),
    ),
    PublicForm(
        "documents with `source`, `target`, `category`",
        "pretrain",
        _lines("any/0.jsonl", {"source": "园子：", "target": GARDEN, "category": "notes"}),
        [{"source": "园子：", "target": GARDEN, "category": "notes"}],
    ),
    PublicForm(
        "a folder of Markdown",
        "pretrain",
        _all(_bytes("wiki/harbour.md", HARBOUR.encode()), _bytes("wiki/food/quince.md", KITCHEN.encode())),
        [*_documents("food", KITCHEN), *_documents("wiki", HARBOUR)],
    ),
    PublicForm(
        "a data set of Hugging Face on disk",
        "pretrain",
        _saved({"text": HARBOUR, "id": "a", "score": 0.5}, {"text": TOWER, "id": "b", "score": 0.25}, shards=2),
        _documents("data", HARBOUR, TOWER),
    ),
    PublicForm(
        "Parquet with many columns",
        "pretrain",
        _bytes(
            "dump/000_00000.parquet",
            parquet_table(
                [
                    {"text": HARBOUR, "id": "<urn:1>", "url": "https://example.org/a", "token_count": 21},
                    {"text": TOWER, "id": "<urn:2>", "url": "https://example.org/b", "token_count": 40},
                ]
            ),
        ),
        _documents("dump", HARBOUR, TOWER),
    ),
    PublicForm(
        "a table of comma-separated values",
        "pretrain",
        _bytes("notes/rows.csv", csv_table([{"text": HARBOUR}, {"text": KITCHEN}])),
        _documents("notes", HARBOUR, KITCHEN),
    ),
    PublicForm(
        "one array with fields of other names",
        "pretrain",
        _array(
            "web/part-00.json",
            {"uniqueKey": "1", "title": "钟楼", "body": TOWER, "dataType": "故事"},
            {"uniqueKey": "2", "title": "园子", "body": GARDEN, "dataType": "回忆"},
        ),
        [*_documents("故事", TOWER), *_documents("回忆", GARDEN)],
        ("--text_field", "body", "--category_field", "dataType"),
    ),
    PublicForm(
        "a tar of text files",
        "pretrain",
        _bytes("shards/0.tar", tar_of([("0/a.txt", HARBOUR.encode()), ("0/b.txt", TOWER.encode())])),
        _documents("shards", HARBOUR, TOWER),
        ("--category_from", "shards"),
    ),
)

CONVERSATION_FORMS = (
    PublicForm(
        "ShareGPT, one array",
        "sft",
        _array(
            "sharegpt.json",
            {
                "id": "QWJhYnk_0",
                "conversations": [
                    {"from": "human", "value": _TRIP[0]},
                    {"from": "gpt", "value": _TRIP[1]},
                    {"from": "human", "value": _TRIP[2]},
                    {"from": "chatgpt", "value": _TRIP[3]},
                ],
            },
            {
                "id": "QWJhYnk_1",
                "conversations": [
                    {"from": "system", "value": _BREVITY},
                    {"from": "human", "value": _TRIP_ENGLISH[0]},
                    {"from": "bing", "value": _TRIP_ENGLISH[1]},
                    {"from": "human", "value": _TRIP_ENGLISH[2]},
                    {"from": "bard", "value": _TRIP_ENGLISH[3]},
                ],
            },
        ),
        [_conversation(*_TRIP), _conversation(*_TRIP_ENGLISH, system=_BREVITY)],
    ),
    PublicForm(
        "OpenAI messages with content lists",
        "sft",
        _lines(
            "fine_tune.jsonl",
            {
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": _BREVITY}]},
                    {"role": "user", "content": [{"type": "text", "text": _TRIP_ENGLISH[0]}]},
                    {"role": "assistant", "content": [{"type": "text", "text": _TRIP_ENGLISH[1]}]},
                ]
            },
            {"messages": [{"role": "user", "content": _TRIP[0]}, {"role": "assistant", "content": _TRIP[1]}]},
        ),
        [_conversation(*_TRIP_ENGLISH[:2], system=_BREVITY), _conversation(*_TRIP[:2])],
    ),
    PublicForm(
        "alpaca",
        "sft",
        _array(
            "alpaca.json",
            {"instruction": "Shorten the text.", "input": HARBOUR, "output": "The office opens at six."},
            {"instruction": _TRIP[0], "input": "", "output": _TRIP[1]},
        ),
        [
            _conversation(f"Shorten the text.\n\n{HARBOUR}", "The office opens at six."),
            _conversation(*_TRIP[:2]),
        ],
    ),
    PublicForm(
        "alpaca with history",
        "sft",
        _array(
            "history.json",
            {
                "instruction": _TRIP[2],
                "input": "",
                "output": _TRIP[3],
                "system": "你是码头的管理员。",
                "history": [[_TRIP[0], _TRIP[1]]],
            },
        ),
        [_conversation(*_TRIP, system="你是码头的管理员。")],
    ),
    PublicForm(
        "`prompt` and `completion`",
        "sft",
        _lines(
            "pairs.jsonl",
            {"prompt": _TRIP[0], "completion": _TRIP[1]},
            {"prompt": _TRIP_ENGLISH[0], "completion": _TRIP_ENGLISH[1]},
        ),
        [_conversation(*_TRIP[:2]), _conversation(*_TRIP_ENGLISH[:2])],
    ),
    PublicForm(
        "`question` and `answer`, comma-separated",
        "sft",
        _bytes(
            "faq.csv",
            csv_table(
                [
                    {"question": _TRIP_ENGLISH[0], "answer": _TRIP_ENGLISH[1]},
                    {"question": _TRIP[2], "answer": f"{_TRIP[3]}\n“很近”。"},
                ]
            ),
        ),
        [_conversation(*_TRIP_ENGLISH[:2]), _conversation(_TRIP[2], f"{_TRIP[3]}\n“很近”。")],
    ),
    PublicForm(
        "conversations as a data set of Hugging Face on disk",
        "sft",
        _saved(
            {
                "prompt_id": "1f",
                "messages": [{"content": _TRIP[0], "role": "user"}, {"content": _TRIP[1], "role": "assistant"}],
            }
        ),
        [_conversation(*_TRIP[:2])],
    ),
    PublicForm(
        "conversations in Parquet, with a name for each role",
        "sft",
        _bytes(
            "chats.parquet",
            parquet_table(
                [
                    {
                        "conversation_id": 3,
                        "messages": [
                            {"role": "Reisende", "content": _TRIP_ENGLISH[0]},
                            {"role": "Schaffner", "content": _TRIP_ENGLISH[1]},
                        ],
                    }
                ]
            ),
        ),
        [_conversation(*_TRIP_ENGLISH[:2])],
        ("--roles", "Reisende=human", "Schaffner=assistant"),
    ),
)

PUBLIC_FORMS = (*DOCUMENT_FORMS, *CONVERSATION_FORMS)


def write_expected(form: PublicForm, directory: Path) -> None:
    """Writes what must come of a form as jsonl."""
    directory.mkdir(parents=True)
    (directory / "expected.jsonl").write_bytes(json_lines(form.expected))


def as_line(record: dict) -> str:
    """A record as one line, for messages of tests."""
    return json.dumps(record, ensure_ascii=False)
