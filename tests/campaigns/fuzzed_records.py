"""Preparations of files of damaged records: every line is used, rejected, or counted as empty.

A trial writes files of records, damages some of them, and prepares the directory twice. With
`--on_bad_record skip` the manifest must account for every line. Without it the run must end with
code 2 and name file and line where there is a bad record, and with the same output otherwise.
"""

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow

from tests.campaigns.outcome import REFUSED, REPAIRED, SILENT, WHOLE, WRONG, Ended, Outcome, run_command
from tests.support.made_data import make_data
from tests.support.preparations import content

SCRIPTS = {"pretrain": "prepare_pretrain_dataset.py", "sft": "prepare_sft_dataset.py"}
COMPRESSION = {".jsonl": None, ".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Prepares damaged documents and conversations in turn."""
    rng = random.Random(seed)
    data = make_data(work_dir / "data")
    for number in range(trials):
        directory = work_dir / f"trial-{number}"
        outcome = _run_trial(("pretrain", "sft")[number % 2], data, directory, rng)
        if outcome.is_good:
            shutil.rmtree(directory)
        yield outcome


def _run_trial(kind: str, data: Path, directory: Path, rng: random.Random) -> Outcome:
    (directory / "in").mkdir(parents=True)
    names = [f"{number}{rng.choice(list(COMPRESSION))}" for number in range(rng.randint(1, 3))]
    files = {name: _write_file(directory / "in" / name, _content(kind, rng), rng) for name in names}
    command = [
        SCRIPTS[kind],
        *("--data_input_dirs", str(directory / "in"), "--tokenizer_dir", str(data / "tokenizers" / "llama2")),
        *("--max_length", "256", "--num_spliced_dataset_bins", "2", "--num_workers", str(rng.choice((1, 2)))),
        *(("--llama_version", "2") if kind == "sft" else ()),
    ]
    skipping = run_command([*command, "--data_output_dirs", str(directory / "skipped"), "--on_bad_record", "skip"])
    stopping = run_command([*command, "--data_output_dirs", str(directory / "stopped")])
    results = [ended.result() for ended in (skipping, stopping)]
    ill = next((result for result in results if result not in (WHOLE, REFUSED)), None)
    result, problem = (ill, "") if ill else _check(skipping, stopping, directory, files)
    lines = sum(len(_lines_of(content)) for content in files.values() if content is not None)
    return Outcome(
        kind=f"{kind}, {'up to 100' if lines <= 100 else 'more'} lines",
        result=result,
        detail=f"{lines} lines of {', '.join(names)}: {problem}",
        output="" if problem == "" and not ill else f"{skipping.last_lines()}\n{stopping.last_lines()}",
        duration_s=round(skipping.duration_s + stopping.duration_s, 2),
    )


def _check(skipping: Ended, stopping: Ended, directory: Path, files: dict[str, bytes | None]) -> tuple[str, str]:
    """Compares both ends with the files' contents; None is a compressed file that is cut off."""
    if skipping.code == 2:
        if "no record could be used" not in skipping.stderr or stopping.code != 2:
            return WRONG, "refused, and not for want of records"
        return REFUSED, ""
    totals = json.loads((directory / "skipped" / "manifest.json").read_text())["totals"]
    rejected = totals["rejected_records"]
    bad, cut = sum(rejected.values()), sum(content is None for content in files.values())
    lines = sum(len(_lines_of(content)) for content in files.values() if content is not None)
    counted = totals["records"] + totals["empty_lines"]
    if rejected.get("damaged_file", 0) != cut or (counted != lines if not cut else counted < lines + cut):
        return WRONG, f"{counted} counted of {lines} lines and {cut} cut-off files"
    if totals["records"] != totals["documents"] + bad:
        return WRONG, f"{totals['records']} records, {totals['documents']} documents, {bad} rejected"
    listed = _listed(directory / "skipped" / "rejected.jsonl")
    if len(listed) != bad:
        return WRONG, f"{bad} rejected, {len(listed)} listed"
    if not bad:
        same = stopping.code == 0 and _parts(directory / "stopped") == _parts(directory / "skipped")
        return (WHOLE, "") if same else (WRONG, "nothing was rejected, but stopping ends otherwise")
    named = set(re.findall(r"^error: .*/in/([^:]+):(\d+): ", stopping.stderr, re.MULTILINE))
    if stopping.code != 2 or not named:
        return (
            SILENT if stopping.code else WRONG,
            f"{bad} bad records, code {stopping.code} without --on_bad_record skip",
        )
    return (REPAIRED, "") if named <= listed else (WRONG, f"{sorted(named - listed)} are not listed")


def _parts(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in content(output).items() if name.startswith(("arrow/", "jsonl/"))}


def _listed(path: Path) -> set[tuple[str, str]]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return {(entry["file"].removeprefix("in/"), str(entry["line"])) for entry in map(json.loads, lines)}


def _lines_of(content: bytes) -> list[bytes]:
    lines = content.removeprefix(BYTE_ORDER_MARK).split(b"\n")
    return lines if lines[-1] else lines[:-1]


# ------------------------------------------------------------------------------------ damaged files


def _write_file(path: Path, data: bytes, rng: random.Random) -> bytes | None:
    """Writes a file; returns its content, None if a compressed file was cut off."""
    codec = COMPRESSION[path.name[1:]]
    whole = rng.choices((_as_it_is, _with_mark, _without_last_feed, _in_utf16, _empty), (12, 2, 2, 1, 1))[0](data)
    stored = whole if codec is None else pyarrow.compress(whole, codec=codec, asbytes=True)
    if rng.random() < 0.15 and len(stored) > 1:
        stored = stored[: rng.randrange(1, len(stored))]
        whole = stored if codec is None else None
    path.write_bytes(stored)
    return whole


def _as_it_is(content: bytes) -> bytes:
    return content


def _with_mark(content: bytes) -> bytes:
    return BYTE_ORDER_MARK + content


def _without_last_feed(content: bytes) -> bytes:
    return content.removesuffix(b"\n")


def _in_utf16(content: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode("utf-16")


def _empty(_: bytes) -> bytes:
    return b""


# ---------------------------------------------------------------------------------- damaged records


def _content(kind: str, rng: random.Random) -> bytes:
    share = rng.choice((0.0, 0.05, 0.5))
    lines = []
    for number in range(rng.choice((1, 20, 200))):
        record = _good_record(kind, number, rng)
        if rng.random() < share:
            lines.append(rng.choice(DAMAGES)(record, rng))
        else:
            lines.append(_json(record))
    ending = rng.choice((b"\n", b"\n", b"\r\n"))
    return ending.join(lines) + ending


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _good_record(kind: str, number: int, rng: random.Random) -> dict:
    texts = [f"text {number} " + rng.choice(PIECES) * rng.randint(1, 30) for _ in range(2 * rng.randint(1, 4))]
    if kind == "pretrain":
        return {"source": "", "target": texts[0], "category": rng.choice("ab")}
    turns = [{"from": ("human", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"messages": turns, "category": rng.choice("ab")}


PIECES = (
    "word ",
    "学习中文。",
    "<s>",
    "</s>",
    "[INST]",
    "\u2028",
    "\x85",
    "\x00",
    "\ufeff",
    "👩‍🔬",
    "e\u0301",
    "\t\f\v",
    "a" * 99,
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -0.0, 1e308, 10**400, float("nan"), float("inf"), "", " ", "\ud800", "x" * 3000),
    *([], {}, [[]], [None], {"a": None}, ["text"], {"content": "x"}, "\n", "\x00", "../..", "a" * 300 + "/b"),
)


def _odd_value(record: dict, rng: random.Random) -> bytes:
    owner = rng.choice([record, *record["messages"]]) if "messages" in record else record
    owner[rng.choice(list(owner))] = rng.choice(ODD_VALUES)
    return _json(record)


def _odd_message(record: dict, rng: random.Random) -> bytes:
    if "messages" in record:
        record["messages"].insert(rng.randint(0, 2), rng.choice(ODD_VALUES))
    return _json(record)


def _missing_key(record: dict, rng: random.Random) -> bytes:
    del record[rng.choice(list(record))]
    return _json(record)


def _more_keys(record: dict, rng: random.Random) -> bytes:
    for name in rng.sample(("weight", "tools", "system", "text", "id", "\ud800", "", "x" * 500, "history"), 2):
        record[name] = rng.choice(ODD_VALUES)
    return _json(record)


def _doubled_key(record: dict, rng: random.Random) -> bytes:
    return b'{"category": "first", ' + _json(record)[1:]


def _deep(record: dict, rng: random.Random) -> bytes:
    depth = rng.choice((10, 500, 100_000))
    return b'{"category": ' + b"[" * depth + b"]" * depth + b", " + _json(record)[1:]


def _cut(record: dict, rng: random.Random) -> bytes:
    line = _json(record)
    return line[: rng.randrange(len(line))]


def _flipped(record: dict, rng: random.Random) -> bytes:
    line = bytearray(_json(record))
    for _ in range(rng.randint(1, 4)):
        line[rng.randrange(len(line))] = rng.choice((0, 1, 0x80, 0xC0, 0xFF, rng.randrange(256)))
    return bytes(line)


def _surrogate(record: dict, rng: random.Random) -> bytes:
    escape = rng.choice((b"\\ud800", b"\\udc00\\ud800", b"\\u0000", b"\\ud83d\\ude00", b"\\x41", b"\xed\xa0\x80"))
    return _json(record).replace(b"text", b"text" + escape, 1)


def _other_syntax(record: dict, rng: random.Random) -> bytes:
    line = _json(record)
    return rng.choice(
        (
            line + line,
            line + b",",
            b"[" + line + b"]",
            line.replace(b'"', b"'"),
            b"# " + line,
            str(record).encode("utf-8", "replace"),
        )
    )


def _no_record(record: dict, rng: random.Random) -> bytes:
    return rng.choice(
        (b"", b" ", b"\t\r", b"\x0c", b"null", b"1", b'"text"', b"[]", b"{}", b"\x00", BYTE_ORDER_MARK, b"\xa0")
    )


def _random_bytes(record: dict, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randint(1, 80))


def _in_another_encoding(record: dict, rng: random.Random) -> bytes:
    return _json(record).decode("utf-8").encode(rng.choice(("utf-16-le", "latin-1", "gb18030")), "replace")


DAMAGES: tuple[Callable[[dict, random.Random], bytes], ...] = (
    *(_odd_value, _odd_value, _odd_message, _missing_key, _more_keys, _doubled_key, _deep, _cut, _flipped, _flipped),
    *(_surrogate, _other_syntax, _no_record, _random_bytes, _in_another_encoding),
)
