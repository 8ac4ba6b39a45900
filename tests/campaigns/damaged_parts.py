"""Damaged parts: bytes of the Arrow file, its other files, and rows that break the rules.

Each trial damages a copy of a prepared part in one way and trains two steps on it. It must be
refused in a sentence, or train as the undamaged part does.
"""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from colossal_llama.dataset.prepare.part_writer import DATA_FILE
from tests.campaigns.outcome import REFUSED, WHOLE, WRONG, Outcome
from tests.support.damaged_inputs import Base, losses, make_base, train

Numbers = random.Random


@dataclass(frozen=True)
class Kind:
    """A way to damage a part.

    Attributes:
        name: of the kind.
        damage: changes the copy of a part, and returns what it has done.
        needs_checksum: True where nothing but the checksum can tell.
    """

    name: str
    damage: Callable[[Path, Numbers, Base], str]
    needs_checksum: bool = False


# ------------------------------------------------------------------------- bytes of the Arrow file


def _flip(part: Path, position: int, bit: int) -> str:
    content = bytearray((part / DATA_FILE).read_bytes())
    content[position] ^= 1 << bit
    (part / DATA_FILE).write_bytes(content)
    return f"bit {bit} of byte {position}"


def _position_in(part: Path, column: str, what: str, numbers: Numbers) -> int:
    """Position in the file of a random item of a column: of its `values` or `offsets`."""
    content = (part / DATA_FILE).read_bytes()
    chunk = pa.ipc.open_stream(content).read_all().column(column).chunk(0)
    items = (chunk.values if what == "values" else chunk.offsets).to_numpy()
    begin = content.find(items.tobytes())
    assert begin >= 0
    return begin + items.itemsize * numbers.randrange(len(items))


def _item_flip(column: str, what: str, bits: range) -> Callable[[Path, Numbers, Base], str]:
    def damage(part: Path, numbers: Numbers, base: Base) -> str:
        bit = numbers.choice(bits)
        return _flip(part, _position_in(part, column, what, numbers) + bit // 8, bit % 8)

    return damage


def _any_flip(first: float, last: float) -> Callable[[Path, Numbers, Base], str]:
    def damage(part: Path, numbers: Numbers, base: Base) -> str:
        size = (part / DATA_FILE).stat().st_size
        return _flip(part, int(size * numbers.uniform(first, last)), numbers.randrange(8))

    return damage


def _metadata_flip(part: Path, numbers: Numbers, base: Base) -> str:
    """In the messages' headers, which say where everything lies."""
    content = (part / DATA_FILE).read_bytes()
    starts = [position for position in range(0, len(content) - 8, 8) if content[position : position + 4] == b"\xff" * 4]
    begin = numbers.choice(starts)
    length = int.from_bytes(content[begin + 4 : begin + 8], "little")
    return _flip(part, begin + numbers.randrange(8 + max(1, min(length, 4096))), numbers.randrange(8))


def _cut(part: Path, numbers: Numbers, base: Base) -> str:
    size = numbers.randrange((part / DATA_FILE).stat().st_size)
    os.truncate(part / DATA_FILE, size)
    return f"cut to {size} bytes"


def _cut_between_batches(part: Path, numbers: Numbers, base: Base) -> str:
    """A stream may end after any batch, without its end mark."""
    table = pa.ipc.open_stream((part / DATA_FILE).read_bytes()).read_all().combine_chunks()
    batches = table.to_batches(max_chunksize=max(1, len(table) // 3))
    with pa.ipc.new_stream(str(part / DATA_FILE), table.schema) as writer:
        for batch in batches[:-1]:
            writer.write_batch(batch)
    return "the last batch is missing"


def _zeros(part: Path, numbers: Numbers, base: Base) -> str:
    content = bytearray((part / DATA_FILE).read_bytes())
    begin = numbers.randrange(len(content)) // 512 * 512
    content[begin : begin + 512] = bytes(len(content[begin : begin + 512]))
    (part / DATA_FILE).write_bytes(content)
    return f"512 zeros at {begin}"


def _moved_block(part: Path, numbers: Numbers, base: Base) -> str:
    content = bytearray((part / DATA_FILE).read_bytes())
    source, target = (numbers.randrange(len(content) - 4096) // 512 * 512 for _ in range(2))
    content[target : target + 4096] = content[source : source + 4096]
    (part / DATA_FILE).write_bytes(content)
    return f"4096 bytes from {source} at {target}"


def _appended(part: Path, numbers: Numbers, base: Base) -> str:
    with (part / DATA_FILE).open("ab") as file:
        file.write(numbers.randbytes(numbers.randrange(1, 5000)))
    return "bytes appended"


def _replaced_file(part: Path, numbers: Numbers, base: Base) -> str:
    shutil.copy(base.parts[1] / DATA_FILE, part / DATA_FILE)
    return "the Arrow file of another part"


def _emptied(part: Path, numbers: Numbers, base: Base) -> str:
    name = numbers.choice(sorted(path.name for path in part.iterdir()))
    (part / name).write_bytes(b"")
    return f"{name} is empty"


def _missing(part: Path, numbers: Numbers, base: Base) -> str:
    name = numbers.choice(sorted(path.name for path in part.iterdir()))
    (part / name).unlink()
    return f"{name} is missing"


# ------------------------------------------------------------------------------------- JSON files

VALUES = (None, [], {}, "", "x", -1, 0, 1, 10**12, 1.5, True, ["a"], [None])


def _json_changed(name: str) -> Callable[[Path, Numbers, Base], str]:
    def damage(part: Path, numbers: Numbers, base: Base) -> str:
        content = json.loads((part / name).read_text())
        key = numbers.choice(sorted(content))
        value = numbers.choice([value for value in VALUES if value != content[key]])
        content[key] = value
        (part / name).write_text(json.dumps(content))
        return f"{name}: {key} is {value!r}"

    return damage


def _json_of_another_kind(part: Path, numbers: Numbers, base: Base) -> str:
    name = numbers.choice(("part.json", "state.json", "dataset_info.json"))
    content = numbers.choice(["[]", "null", "{}", '"text"', "3", "[" * 9999, "\ufeff{}", '{"a": 1'])
    (part / name).write_text(content)
    return f"{name}: {content[:20]}"


def _json_cut(part: Path, numbers: Numbers, base: Base) -> str:
    name = numbers.choice(("part.json", "state.json", "dataset_info.json"))
    size = numbers.randrange((part / name).stat().st_size)
    os.truncate(part / name, size)
    return f"{name}: cut to {size} bytes"


def _foreign_facts(part: Path, numbers: Numbers, base: Base) -> str:
    other = numbers.choice([base.parts[1], base.sft_part, base.foreign_part])
    shutil.copy(other / "part.json", part / "part.json")
    return f"part.json of {other}"


def _foreign_part(part: Path, numbers: Numbers, base: Base) -> str:
    """The part of another tokenizer, which does not say so."""
    shutil.rmtree(part)
    shutil.copytree(base.foreign_part, part)
    facts = json.loads((part / "part.json").read_text())
    del facts["tokenizer_fingerprint"]
    facts.pop("checksum", None)
    (part / "part.json").write_text(json.dumps(facts))
    return "a part of another preparation"


def _other_files_named(part: Path, numbers: Numbers, base: Base) -> str:
    state = json.loads((part / "state.json").read_text())
    other = os.path.relpath(base.parts[1] / DATA_FILE, part)
    state["_data_files"] = numbers.choice(
        [[{"filename": other}], [{"filename": DATA_FILE}] * 2, [], [{}], [DATA_FILE], [{"filename": "nothing.arrow"}]]
    )
    (part / "state.json").write_text(json.dumps(state))
    return f"state.json names {state['_data_files']}"


def _renamed_categories(part: Path, numbers: Numbers, base: Base) -> str:
    info = json.loads((part / "dataset_info.json").read_text())
    info["features"]["document_categories"]["feature"]["names"].reverse()
    (part / "dataset_info.json").write_text(json.dumps(info))
    return "categories in another order in dataset_info.json"


def _other_type(part: Path, numbers: Numbers, base: Base) -> str:
    info = json.loads((part / "dataset_info.json").read_text())
    column = numbers.choice(("input_ids", "labels", "document_lengths"))
    info["features"][column]["feature"]["dtype"] = numbers.choice(("int64", "int16", "uint8", "float32", "string"))
    (part / "dataset_info.json").write_text(json.dumps(info))
    return f"{column} is {info['features'][column]['feature']['dtype']} in dataset_info.json"


# ---------------------------------------------------------------- whole files with impossible rows


def _rewritten(change: Callable[[dict[str, list], Numbers], None]) -> Callable[[Path, Numbers, Base], str]:
    """Writes the part's rows, changed, in a file that is whole; no checksum is recorded."""

    def damage(part: Path, numbers: Numbers, base: Base) -> str:
        table = pa.ipc.open_stream((part / DATA_FILE).read_bytes()).read_all()
        columns = table.to_pydict()
        change(columns, numbers)
        changed = pa.Table.from_pydict(columns, schema=table.schema)
        with pa.ipc.new_stream(str(part / DATA_FILE), changed.schema) as writer:
            writer.write_table(changed)
        facts = json.loads((part / "part.json").read_text())
        del facts["arrow_sha256"], facts["target_tokens"]
        facts.pop("checksum", None)
        facts |= {"rows": len(changed), "tokens": sum(len(row or ()) for row in columns["input_ids"])}
        (part / "part.json").write_text(json.dumps(facts))
        return change.__name__

    return damage


def _row(columns: dict[str, list], numbers: Numbers) -> int:
    return numbers.randrange(len(columns["input_ids"]))


def id_beyond_the_vocabulary(columns, numbers):
    ids = columns["input_ids"][_row(columns, numbers)]
    ids[numbers.randrange(len(ids))] = numbers.choice((-1, -100, 10**6, 2**31 - 1, -(2**31)))


def labels_shifted(columns, numbers):
    row = _row(columns, numbers)
    columns["labels"][row] = [*columns["labels"][row][1:], -100]


def label_of_its_own(columns, numbers):
    labels = columns["labels"][_row(columns, numbers)]
    labels[numbers.randrange(len(labels))] = numbers.choice((-1, -101, 10**6, 2**31 - 1))


def fewer_labels(columns, numbers):
    columns["labels"][_row(columns, numbers)].pop()


def lengths_too_long(columns, numbers):
    lengths = columns["document_lengths"][_row(columns, numbers)]
    lengths[numbers.randrange(len(lengths))] += numbers.choice((-1, 1, 10**9))


def length_of_zero(columns, numbers):
    row = _row(columns, numbers)
    columns["document_lengths"][row].append(0)
    columns["document_categories"][row].append(0)


def category_out_of_range(columns, numbers):
    categories = columns["document_categories"][_row(columns, numbers)]
    categories[numbers.randrange(len(categories))] = numbers.choice((-1, 2, 10**9))


def categories_missing(columns, numbers):
    columns["document_categories"][_row(columns, numbers)].pop()


def row_without_tokens(columns, numbers):
    row = _row(columns, numbers)
    for values in columns.values():
        values[row] = []


def row_too_long(columns, numbers):
    row = _row(columns, numbers)
    added = 300
    columns["input_ids"][row] += [5] * added
    columns["labels"][row] += [5] * added
    columns["document_lengths"][row][-1] += added


def missing_row(columns, numbers):
    columns[numbers.choice(sorted(columns))][_row(columns, numbers)] = None


def missing_value(columns, numbers):
    values = columns[numbers.choice(("input_ids", "labels", "document_lengths"))][_row(columns, numbers)]
    values[numbers.randrange(len(values))] = None


RULES = (
    id_beyond_the_vocabulary,
    labels_shifted,
    label_of_its_own,
    fewer_labels,
    lengths_too_long,
    length_of_zero,
    category_out_of_range,
    categories_missing,
    row_without_tokens,
    row_too_long,
    missing_row,
    missing_value,
)

KINDS = (
    Kind("token: bit", _item_flip("input_ids", "values", range(32)), needs_checksum=True),
    Kind("token: high bit", _item_flip("input_ids", "values", range(13, 32))),
    Kind("label: bit", _item_flip("labels", "values", range(32))),
    Kind("document length: bit", _item_flip("document_lengths", "values", range(32))),
    Kind("category: bit", _item_flip("document_categories", "values", range(64)), needs_checksum=True),
    Kind("offset of ids: bit", _item_flip("input_ids", "offsets", range(32))),
    Kind("offset of labels: bit", _item_flip("labels", "offsets", range(32))),
    Kind("offset of lengths: bit", _item_flip("document_lengths", "offsets", range(32))),
    Kind("message header: bit", _metadata_flip, needs_checksum=True),
    Kind("schema: bit", _any_flip(0, 0.02), needs_checksum=True),
    Kind("any bit", _any_flip(0, 1), needs_checksum=True),
    Kind("Arrow file cut", _cut),
    Kind("Arrow file without its last batch", _cut_between_batches),
    Kind("Arrow file: zeros", _zeros, needs_checksum=True),
    Kind("Arrow file: moved block", _moved_block, needs_checksum=True),
    Kind("Arrow file: bytes appended", _appended),
    Kind("Arrow file of another part", _replaced_file, needs_checksum=True),
    Kind("file empty", _emptied),
    Kind("file missing", _missing),
    Kind("part.json: value", _json_changed("part.json")),
    Kind("state.json: value", _json_changed("state.json")),
    Kind("dataset_info.json: value", _json_changed("dataset_info.json")),
    Kind("JSON of another kind", _json_of_another_kind),
    Kind("JSON cut", _json_cut),
    Kind("part.json of another part", _foreign_facts),
    Kind("part of another tokenizer", _foreign_part),
    Kind("state.json: other files", _other_files_named),
    Kind("dataset_info.json: categories", _renamed_categories),
    Kind("dataset_info.json: type", _other_type),
    *(Kind(f"rows: {change.__name__.replace('_', ' ')}", _rewritten(change)) for change in RULES),
)


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Runs so many trials, the kinds in turn."""
    base = make_base(work_dir / "base")
    undamaged = {}
    for as_evaluation in (False, True):
        ended, undamaged[as_evaluation] = _train(base, base.parts[0], work_dir / "whole", as_evaluation)
        assert ended.code == 0, ended.stderr
    for number in range(trials):
        numbers, kind = random.Random(f"{seed} {number}"), KINDS[number % len(KINDS)]
        place = work_dir / f"trial-{number}"
        part = shutil.copytree(base.parts[0], place / "part-00000")
        detail = kind.damage(part, numbers, base)
        as_evaluation = numbers.random() < 0.25
        options = ["--verify_data", "False"] if not kind.needs_checksum and numbers.random() < 0.5 else []
        ended, found = _train(base, part, place, as_evaluation, *options)
        result = ended.result()
        if result == WHOLE and found != undamaged[as_evaluation]:
            result = WRONG
        detail = f"seed {seed}, trial {number}: {detail}; as_evaluation {as_evaluation} {options}"
        output = "" if result in (REFUSED, WHOLE) else ended.last_lines()
        yield Outcome(kind.name, result, detail, output, ended.duration_s)
        shutil.rmtree(place)


def _train(base: Base, part: Path, place: Path, as_evaluation: bool, *options: str):
    """The end of a run on a part, and its losses."""
    shutil.rmtree(place / "run", ignore_errors=True)
    given = [base.parts[1], part] if not as_evaluation else [base.parts[1]]
    more = ["--eval_dataset", str(part)] if as_evaluation else []
    ended = train(base.model, given, place / "run", "--shuffle", "global", *more, *options)
    return ended, losses(place / "run") if ended.code == 0 else []
