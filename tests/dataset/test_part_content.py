"""Arrow files of parts are checked before anything computes with them."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from colossal_llama.dataset.part_content import ContentRules, check_content, check_structure, data_files
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_file

RULES = ContentRules(vocabulary=203, max_length_tokens=96, categories=2)


@pytest.fixture
def file(toy, tmp_path):
    """The Arrow file of a copy of a part."""
    (found,) = data_files(shutil.copytree(toy.parts[0], tmp_path / "part-00000"))
    return found


def columns_of(file):
    return pa.ipc.open_stream(file.read_bytes()).read_all()


def flip(file, column, what, item, bit):
    """Flips a bit of an item of a column's values or offsets."""
    content, chunk = bytearray(file.read_bytes()), columns_of(file).column(column).chunk(0)
    items = (chunk.values if what == "values" else chunk.offsets).to_numpy()
    content[content.find(items.tobytes()) + item * items.itemsize + bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def check_both(file):
    check_structure(file)
    check_content([file], RULES)


@pytest.mark.parametrize("column", ["input_ids", "labels", "document_lengths", "document_categories"])
@pytest.mark.parametrize("bit", [3, 30, 31])
def test_a_wrong_offset_is_found_before_it_is_followed(file, column, bit):
    flip(file, column, "offsets", 2, bit)
    with pytest.raises(UserError, match=r"\.arrow"):
        check_both(file)


@pytest.mark.parametrize(
    ("column", "bit", "said"),
    [
        ("input_ids", 24, r"row 0: the id \d+ is none of the 203 of the vocabulary"),
        ("input_ids", 31, r"row 0: the id -\d+ is none of the 203"),
        ("labels", 4, r"row 0: the label -?\d+ is neither -100 nor the token's id"),
        ("document_lengths", 0, "row 0: its documents have another length than its ids"),
        ("document_lengths", 31, r"row 0: a document of -\d+ tokens"),
        ("document_categories", 1, r"row 0: the category number \d is none of the 2"),
        ("document_categories", 63, r"row 0: the category number -\d+ is none of the 2"),
    ],
)
def test_a_wrong_value_is_named_with_its_row(file, column, bit, said):
    flip(file, column, "values", 1 if column in ("input_ids", "labels") else 0, bit)
    check_structure(file)
    with pytest.raises(UserError, match=said):
        check_content([file], RULES)


def test_rows_in_later_batches_are_numbered_through(file):
    table = columns_of(file)
    changed = table.to_pydict()
    changed["labels"][7][-1] = 7777
    with pa.ipc.new_stream(str(file), table.schema) as writer:
        for batch in pa.Table.from_pydict(changed, table.schema).to_batches(max_chunksize=3):
            writer.write_batch(batch)
    with pytest.raises(UserError, match="row 7: the label 7777"):
        check_content([file], RULES)


@pytest.mark.parametrize("what", ["a valid other token", "bytes behind the end", "the number of targets"])
def test_the_checksum_tells_what_no_rule_can(file, what):
    recorded = fingerprint_file(file)
    rules = ContentRules(203, 96, 2, arrow_sha256=recorded)
    check_content([file], rules)
    if what == "a valid other token":
        labels = columns_of(file).column("labels").chunk(0).values.to_numpy()
        flip(file, "input_ids", "values", int(np.argmax(labels == -100)), 0)
    elif what == "bytes behind the end":
        file.write_bytes(file.read_bytes() + b"x")
    else:
        rules = ContentRules(203, 96, 2, target_tokens=1)
    check_structure(file)
    with pytest.raises(UserError, match=r"part\.json"):
        check_content([file], rules)
    check_content([file], RULES)


def test_types_and_missing_values_are_refused(file):
    table = columns_of(file)
    texts = pa.array([["a"]] * len(table))
    rows = table.column("input_ids").to_pylist()
    nulls = pa.array([None, *rows[1:]], pa.list_(pa.int32()))
    for column, said in ((texts, "lists of integers are needed"), (nulls, "input_ids has missing values")):
        changed = table.set_column(table.schema.names.index("input_ids"), "input_ids", column)
        with pa.ipc.new_stream(str(file), changed.schema) as writer:
            writer.write_table(changed)
        with pytest.raises(UserError, match=said):
            check_structure(file)


@pytest.mark.parametrize("names", [[], ["../other.arrow"], ["nothing.arrow"], ["twice", "twice"], [3]])
def test_files_elsewhere_are_not_opened(file, names):
    part = file.parent
    (part / "twice").touch()
    (part / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    with pytest.raises(UserError, match=r"state\.json"):
        data_files(part)


def test_a_part_without_rows_has_nothing_wrong(file):
    table = columns_of(file).slice(0, 0)
    for batches in ([], table.to_batches()):
        with pa.ipc.new_stream(str(file), table.schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        check_structure(file)
        check_content([file], RULES)
