"""Damages to every file of a tokenizer's directory, and to a file of pieces.

A trial damages one file. Then it expands the tokenizer (init_tokenizer.py), or prepares data with
it. Right is a sentence with code 2, or the undisturbed result. A damage may also leave another
tokenizer, which nothing tells from one that was meant: then every id must be the one that
transformers gives for the damaged directory, and the table says so. Of a damaged file of pieces
every line is a piece that was added, known or left out and named.

Each command runs in a process forked from this one: a trial takes a fraction of a second, and a
library that crashes takes only its own process along.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.campaigns.outcome import REFUSED, REPAIRED, WHOLE, WRONG, Ended, Outcome
from tests.support.made_data import make_llama2, make_llama3

TIMEOUT_S = 120
PIECES = ["你好", "人工智能", "博物馆", "▁在", "意大利", "越来越多的人", "智能手机", "x1y2", "你好", "<think>这"]
TEXTS = ["The cat sat. 你好，人工智能。\n", "a <think> b </s> <|eot_id|> 12345", "深度学习 (x + y)", "人工智障 é ~ \t"]
STILL_A_TOKENIZER = " (left another tokenizer, kept as it is)"


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Damages copies of two tokenizers and a file of pieces, and yields how the commands end."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # else each fork is warned of
    chance = random.Random(seed)
    sources = _make_sources(work_dir)
    pieces = work_dir / "pieces.jsonl"
    pieces.write_text("".join(json.dumps({"piece": piece}, ensure_ascii=False) + "\n" for piece in PIECES), "utf-8")
    documents = work_dir / "in"
    documents.mkdir()
    rows = [{"source": "", "target": text, "category": "c"} for text in TEXTS]
    (documents / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    undisturbed = {}
    for name, source in sources.items():
        for command in (EXPAND, PREPARE):
            out = work_dir / f"whole-{name}-{command}"
            ended = run_here(command, source, pieces, documents, out)
            assert ended.code == 0, ended.stderr
            undisturbed[name, command] = content(out)
    for number in range(trials):
        trial = work_dir / "trial"
        trial.mkdir()
        name, command = chance.choice(list(sources)), chance.choice([EXPAND, EXPAND, PREPARE])
        source, damaged_pieces, out = trial / "source", trial / "pieces.jsonl", trial / "out"
        shutil.copytree(sources[name], source)
        shutil.copyfile(pieces, damaged_pieces)
        files = sorted(path for path in source.iterdir())
        of_pieces = command == EXPAND and chance.random() < 0.3
        file = damaged_pieces if of_pieces else chance.choice(files)
        damages = PIECE_DAMAGES if of_pieces else (DAMAGES | (JSON_DAMAGES if file.suffix == ".json" else {}))
        damage = chance.choice(list(damages))
        told = damages[damage](chance, file, chance.choice(files))
        detail = f"seed {seed}, trial {number}: {command}, {name}, {file.name}: {damage}: {told or ''}"
        kind = f"{command}: {file.name}"
        ended = run_here(command, source, damaged_pieces, documents, out)
        yield _judge(kind, detail, ended, command, source, damaged_pieces, out, undisturbed[name, command])
        shutil.rmtree(trial)


def _judge(
    kind: str, detail: str, ended: Ended, command: str, source: Path, pieces: Path, out: Path, whole: dict[str, bytes]
) -> Outcome:
    result, shown = ended.result(), ended.stderr[-2000:]
    if result == REFUSED and out.exists():
        result, shown = WRONG, "refused, but something was written"
    if result == WHOLE and content(out) != whole:
        reason = (_wrong_expansion if command == EXPAND else _wrong_preparation)(source, pieces, out)
        if reason:
            result, shown = WRONG, reason
        elif source.parent.joinpath("pieces.jsonl").read_bytes() != _pieces_content() or "note:" in ended.stdout:
            result = REPAIRED
        else:
            kind += STILL_A_TOKENIZER
    return Outcome(kind, result, detail, "" if result in (WHOLE, REFUSED, REPAIRED) else shown, ended.duration_s)


def _pieces_content() -> bytes:
    return "".join(json.dumps({"piece": piece}, ensure_ascii=False) + "\n" for piece in PIECES).encode()


def _wrong_expansion(source: Path, pieces: Path, out: Path) -> str:
    """What is wrong with an expansion of a damaged source, by transformers alone; or nothing."""
    from transformers import AutoTokenizer

    for fast in (True, False) if (source / "tokenizer.model").is_file() else (True,):
        old, new = (AutoTokenizer.from_pretrained(path, use_fast=fast) for path in (source, out))
        changed = {
            token: token_id for token, token_id in old.get_vocab().items() if new.get_vocab().get(token) != token_id
        }
        if changed:
            return f"{len(changed)} old ids changed: {list(changed.items())[:3]}"
        first_new_id = 1 + max(old.get_vocab().values())
        for text in TEXTS:
            ids, new_ids = (tokenizer.encode(text) for tokenizer in (old, new))
            if max(new_ids) < first_new_id and ids != new_ids:
                return f"{text!r} was {ids} and is {new_ids}"
    report = json.loads((out / "expansion_report.json").read_text("utf-8"))
    lines = [line for line in pieces.read_bytes().split(b"\n") if line.strip()]
    counted = report["duplicate"] + report["already_known"] + report["impossible"] + report["new"]
    if not report["asked"] == counted == len(lines):
        return f"{len(lines)} lines, {report['asked']} asked, {counted} accounted for"
    return ""


def _wrong_preparation(source: Path, _: Path, out: Path) -> str:
    """Compares the prepared ids with those of transformers; empty: the same."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    wanted: Counter[int] = Counter()
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        wanted.update([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id])
    found: Counter[int] = Counter()
    for part in (out / "jsonl").glob("part-*.jsonl"):
        for line in part.read_text("utf-8").splitlines():
            found.update(json.loads(line)["input_ids"])
    return "" if found == wanted else f"other ids than transformers': {found - wanted}, {wanted - found}"


def content(directory: Path) -> dict[str, bytes]:
    """A tokenizer's files, or a preparation's rows."""
    files = sorted(directory.glob("jsonl/*")) if (directory / "jsonl").is_dir() else sorted(directory.iterdir())
    return {path.name: path.read_bytes() for path in files}


def _make_sources(work_dir: Path) -> dict[str, Path]:
    """Both kinds of tokenizer, with added tokens, and one that has the older files for them."""
    from transformers import AutoTokenizer

    sources = {}
    for name, plain in (
        ("llama2", make_llama2(work_dir / "plain2")),
        ("llama3", make_llama3(work_dir / "plain3", "<|eot_id|>")),
    ):
        tokenizer = AutoTokenizer.from_pretrained(plain)
        tokenizer.add_tokens(["<think>", "人工智障"])
        tokenizer.save_pretrained(work_dir / name)
        sources[name] = work_dir / name
    older = shutil.copytree(work_dir / "llama2", work_dir / "llama2-older")
    (older / "tokenizer.json").unlink()
    config = json.loads((older / "tokenizer_config.json").read_text("utf-8"))
    del config["added_tokens_decoder"]
    (older / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    sources["llama2-older"] = older
    return sources


# ----------------------------------------------------------------------------------------- commands

EXPAND, PREPARE = "init_tokenizer", "prepare"


def run_here(command: str, source: Path, pieces: Path, documents: Path, out: Path) -> Ended:
    """Runs a script's entry point in a forked process with a time limit."""
    if command == EXPAND:
        words = ["init_tokenizer.py", "--source_tokenizer_dir", source, "--target_tokenizer_dir", out]
        words += ["--expand_tokens_file", pieces]
    else:
        words = ["prepare_pretrain_dataset.py", "--data_input_dirs", documents, "--tokenizer_dir", source]
        words += ["--data_output_dirs", out, "--num_workers", 1, "--num_spliced_dataset_bins", 2, "--max_length", 512]
    return run_forked(command, [str(word) for word in words], out.with_suffix(".log"))


def run_forked(command: str, words: Sequence[str], log: Path) -> Ended:
    """Calls the command's `main` in a child; its streams go to files next to `log`."""
    begin = time.monotonic()
    streams = [log.with_suffix(ending) for ending in (".stdout", ".stderr")]
    child = os.fork()
    if child == 0:
        _be_command(command, words, streams)
    code = _wait(child, begin)
    stdout, stderr = (stream.read_text("utf-8", "replace") for stream in streams)
    return Ended(code, stdout, stderr, time.monotonic() - begin)


def _be_command(command: str, words: Sequence[str], streams: Sequence[Path]) -> None:
    code = 1
    try:
        os.setsid()
        for number, stream in enumerate(streams, start=1):
            os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        sys.argv = list(words)
        from colossal_llama.dataset.prepare.cli import prepare_pretrain
        from colossal_llama.tokenizer.init_tokenizer import main
        from colossal_llama.utils.errors import run_main

        run_main(main if command == EXPAND else prepare_pretrain)
        code = 0
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int, begin: float) -> int | None:
    while time.monotonic() - begin < TIMEOUT_S:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


# ------------------------------------------------------------------------------------------ damages


def _flip(chance: random.Random, file: Path, _: Path) -> str:
    data = bytearray(file.read_bytes())
    place = chance.randrange(max(1, len(data)))
    data[place : place + 1] = bytes([data[place] ^ (1 << chance.randrange(8))]) if data else b"x"
    file.write_bytes(bytes(data))
    return f"byte {place:,}"


def _truncate(chance: random.Random, file: Path, _: Path) -> str:
    size = chance.randrange(max(1, file.stat().st_size))
    os.truncate(file, size)
    return f"to {size:,} bytes"


def _zero(chance: random.Random, file: Path, _: Path) -> str:
    data = bytearray(file.read_bytes())
    place, length = chance.randrange(max(1, len(data))), chance.choice([1, 16, 512, 4096])
    data[place : place + length] = bytes(len(data[place : place + length]))
    file.write_bytes(bytes(data))
    return f"{length} bytes from {place:,}"


def _cut_out(chance: random.Random, file: Path, _: Path) -> str:
    data = file.read_bytes()
    place, length = chance.randrange(max(1, len(data))), chance.choice([1, 2, 64, 4096])
    file.write_bytes(data[:place] + data[place + length :])
    return f"{length} bytes from {place:,}"


def _to_directory(_: random.Random, file: Path, __: Path) -> None:
    file.unlink()
    file.mkdir()


def _to_pipe(_: random.Random, file: Path, __: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _to_broken_link(_: random.Random, file: Path, __: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def _replace(_: random.Random, file: Path, other: Path) -> str:
    file.write_bytes(other.read_bytes())
    return f"by {other.name}"


def _written(data: bytes) -> Callable[[random.Random, Path, Path], None]:
    def write(_: random.Random, file: Path, __: Path) -> None:
        file.write_bytes(data)

    return write


def _edited(edit: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, Path, Path], None]:
    def change(chance: random.Random, file: Path, _: Path) -> None:
        file.write_bytes(edit(chance, file.read_bytes()))

    return change


DAMAGES: dict[str, Callable[[random.Random, Path, Path], str | None]] = {
    "byte flipped": _flip,
    "cut off": _truncate,
    "zeros": _zero,
    "cut out": _cut_out,
    "random bytes": _edited(lambda chance, data: chance.randbytes(chance.randint(1, 4096))),
    "extended": _edited(lambda chance, data: data + chance.randbytes(chance.randint(1, 64))),
    "byte order mark": _edited(lambda chance, data: b"\xef\xbb\xbf" + data),
    "emptied": _written(b""),
    "deleted": lambda chance, file, other: file.unlink(),
    "another file's content": _replace,
    "a directory": _to_directory,
    "a named pipe": _to_pipe,
    "a broken link": _to_broken_link,
}

ODD_VALUES: list[Any] = [
    None,
    [],
    {},
    "",
    "x",
    -1,
    0,
    2**31,
    2**70,
    1.5,
    True,
    "\ud800",
    "\0",
    ["x", 3],
    {"content": 5},
]


def _containers(value: Any) -> Iterator[dict | list]:
    """Yields every object and list that holds something; of a long one, few of its members."""
    if isinstance(value, dict | list) and value:
        yield value
        members = list(value.values() if isinstance(value, dict) else value)
        for member in members[:40] + members[-4:]:
            yield from _containers(member)


def _change_json(edit: Callable[[random.Random, Any, Any], Any]) -> Callable[[random.Random, Path, Path], str]:
    def change(chance: random.Random, file: Path, _: Path) -> str:
        root = json.loads(file.read_text("utf-8"))
        container = chance.choice(list(_containers(root)))
        key = chance.choice(list(container) if isinstance(container, dict) else range(len(container)))
        told = edit(chance, container, key)
        file.write_text(json.dumps(root), "utf-8")
        return f"{key!r}: {told!r}"[:200]

    return change


def _odd_value(chance: random.Random, container: Any, key: Any) -> Any:
    container[key] = chance.choice(ODD_VALUES)
    return container[key]


def _another_value(chance: random.Random, container: Any, key: Any) -> Any:
    """The value of a neighbour: two tokens with one id, an id twice, a token twice."""
    keys = list(container) if isinstance(container, dict) else range(len(container))
    container[key] = container[chance.choice(list(keys))]
    return container[key]


def _without(_: random.Random, container: Any, key: Any) -> str:
    del container[key]
    return "removed"


def _renamed(chance: random.Random, container: Any, key: Any) -> str:
    if isinstance(container, dict):
        container[chance.choice(["", "x", "99999", "-3", "\0", f"{key}x"])] = container.pop(key)
    return "renamed"


JSON_DAMAGES: dict[str, Callable[[random.Random, Path, Path], str | None]] = {
    **{name: _written(name.encode()) for name in ("[]", "null", "3", '"x"', "{}", "NaN", '{"a": NaN}')},
    "nested JSON": _written(b"[" * 100_000),
    "an odd value": _change_json(_odd_value),
    "an odd value, again": _change_json(_odd_value),
    "another's value": _change_json(_another_value),
    "a key removed": _change_json(_without),
    "a key renamed": _change_json(_renamed),
    "auto_map": _edited(lambda chance, data: b'{"auto_map": {"AutoTokenizer": ["a.B", "a.C"]},' + data.lstrip()[1:]),
}

_ODD_LINES = [
    b'{"piece": 5}', b'{"piece": null}', b'{"piece": ["x"]}', b'{"piece": {}}', b'{"piece": ""}', b'{"piece": " "}',
    b'{"piece": "\\u0000x"}', b'{"piece": "a\\u0000"}', b'{"piece": "\\ud800"}', b'{"piece": "\xff"}', b'["x"]', b"3",
    b'{"text": "x"}', b'{"piece": "x"', b"null", b"\0\0\0", b'{"piece": "\\u2581\\u2581"}', b'{"piece": "a\\nb"}',
    b'{"piece": "\\r"}', b'{"piece": "\\t\\tq"}', b'{"piece": "</s>"}', b'{"piece": "<think>"}',
    b'{"piece": "\\u200d"}',
    b'{"piece": "\xef\xbb\xbf"}', b'{"piece": "\\ufeffx"}', b'{"piece": "e\\u0301"}', b'{"piece": "\\ufb01"}',
    b'{"piece": "\\u3000"}', b'{"piece": "\\u00a0x"}', b'{"piece": "\\uffff"}', b'{"piece": "\\ue000"}', b"[" * 5000,
    b'{"piece": "' + "汉".encode() * 400_000 + b'"}', b'{"piece": "' + b"ab" * 900 + b'"}', b'{"piece": 1e999}',
    b'{"piece": "' + " 的".encode() * 300 + b'"}', b'{"piece": "<0x0A>"}', b'{"piece": "<unk>"}',
    b'{"piece": "x", "piece": "y"}',
]  # fmt: skip


def _odd_lines(chance: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    for _ in range(chance.randint(1, 3)):
        lines.insert(chance.randrange(len(lines)), chance.choice(_ODD_LINES))
    return b"\n".join(lines)


PIECE_DAMAGES: dict[str, Callable[[random.Random, Path, Path], str | None]] = {
    **DAMAGES,
    "odd lines": _edited(_odd_lines),
    "one odd line": _edited(lambda chance, data: data + chance.choice(_ODD_LINES) + b"\n"),
    "lines of another end": _edited(lambda chance, data: data.replace(b"\n", b"\r\n")),
    "no last line end": _edited(lambda chance, data: data.rstrip(b"\n")),
    "blank lines": _edited(lambda chance, data: b"\n \n\t\n" + data),
    "UTF-16": _edited(lambda chance, data: data.decode().encode("utf-16")),
    "all of it twice": _edited(lambda chance, data: data + data),
}
