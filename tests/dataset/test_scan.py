"""Data sets of other programs are read as a whole before a run: checked, counted, fingerprinted."""

import json
import os
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pytest

from colossal_llama.dataset.collator import Collator
from colossal_llama.dataset.loader import RowReader
from colossal_llama.dataset.part import categories_of
from colossal_llama.dataset.part_reader import open_parts
from colossal_llama.dataset.tokenized import scan as scan_module
from colossal_llama.dataset.tokenized.part import TokenizedPart, describe, tokenizer_problem
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.errors import UserError
from tests.support.documented import python_blocks
from tests.support.tokenized_data import FORMS, as_they_are, one_document, rows_of, save

MAX_LENGTH = 96


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(scan_module, "ROWS_AT_ONCE", 4)


@pytest.fixture(scope="module")
def rows(toy):
    return [row for part in toy.parts for row in rows_of(part)]


def saved(path, **columns):
    datasets.Dataset.from_dict(columns).save_to_disk(str(path))
    return path


def opened(path, max_length=MAX_LENGTH) -> TokenizedPart:
    (part,) = open_parts([path], max_length)
    return part


def refused(path, max_length=MAX_LENGTH) -> str:
    with pytest.raises(UserError) as error:
        open_parts([path], max_length)
    (problem,) = error.value.problems
    return problem


def test_equal_rows_have_one_fingerprint_in_any_form_type_and_number_of_files(rows, tmp_path):
    fingerprints = {
        opened(save(rows, tmp_path / f"{name}-{files}-{dtype}", form, files, dtype)).fingerprint
        for name, form in FORMS.items()
        for files, dtype in ((1, "int32"), (5, "int64"))
    }
    assert len(fingerprints) == 1


@pytest.mark.parametrize("change", ["an id", "a target", "the order", "a document", "lengths", "one row less"])
def test_changed_rows_have_another_fingerprint(rows, tmp_path, change):
    changed = [{name: list(values) for name, values in row.items()} for row in rows]
    if change == "an id":
        changed[20]["input_ids"][0] += 1
    elif change == "a target":
        changed[20]["labels"][-1] = -100
    elif change == "the order":
        changed[3], changed[4] = changed[4], changed[3]
    elif change == "a document":
        length = changed[20]["document_lengths"].pop()
        changed[20]["document_lengths"] += [1, length - 1]
    elif change == "lengths":
        row = next(row for row in changed if len(row["document_lengths"]) > 1)
        row["document_lengths"][0] -= 1
        row["document_lengths"][1] += 1
        row["labels"] = [-100] * len(row["labels"])
        rows = [{**each, "labels": row["labels"]} if each["input_ids"] == row["input_ids"] else each for each in rows]
    else:
        changed.pop()
    one, other = (opened(save(made, tmp_path / name, as_they_are)) for name, made in (("a", rows), ("b", changed)))
    assert one.fingerprint != other.fingerprint


def test_counts_and_lengths_are_those_of_the_rows(rows, tmp_path):
    part = opened(save(rows, tmp_path / "set", FORMS["padded_left"], 3))
    lengths = [len(row["input_ids"]) for row in rows]
    assert part.row_lengths_tokens().tolist() == lengths
    assert part.document_tokens(cross_document_attention=True).tolist() == lengths
    documents = [length for row in rows for length in row["document_lengths"]]
    assert part.document_tokens(cross_document_attention=False).tolist() == documents
    assert part.tokens == sum(lengths)
    assert part.scan.padding_tokens == max(lengths) * len(rows) - sum(lengths)
    assert part.facts.target_tokens == sum(label != -100 for row in rows for label in row["labels"])
    assert part.facts.max_length == max(lengths)
    reader = part.reader(("input_ids", "labels", "document_lengths"))
    for number, row in enumerate(rows):
        assert {name: values.tolist() for name, values in reader[number].items()} == row


def test_rows_are_mapped_and_not_copied(tmp_path):
    features = datasets.Features(input_ids=datasets.Sequence(datasets.Value("int32")))
    ids = np.random.default_rng(0).integers(3, 200, (4000, 1000), dtype=np.int32)
    datasets.Dataset.from_dict({"input_ids": list(ids)}, features=features).save_to_disk(str(tmp_path / "set"))
    before = pa.total_allocated_bytes()
    part = opened(tmp_path / "set", 1000)
    row = part.reader(("input_ids",))[3999]["input_ids"]
    assert (row == ids[3999]).all()
    assert pa.total_allocated_bytes() - before < 100_000  # of 16 MB


def test_kinds_are_told_by_what_rows_begin_with(toy, rows, tmp_path):
    chats = opened(save(rows_of(toy.sft_parts[0]), tmp_path / "chats", one_document))
    assert (chats.kind, chats.holds_samples) == ("sft", True)
    spliced = opened(save(rows, tmp_path / "spliced", as_they_are))
    assert (spliced.kind, spliced.holds_samples) == ("pretrain", False)
    chunks = opened(saved(tmp_path / "chunks", input_ids=[[5] * 50] * 3 + [[6] * 20]))
    assert (chunks.kind, chunks.holds_samples) == ("pretrain", False)
    texts = opened(saved(tmp_path / "texts", input_ids=[[5] * 50] + [[6] * 5] * 9))
    assert (texts.kind, texts.holds_samples) == ("pretrain", True)
    with pytest.raises(UserError, match=r"mixes pre-training and conversation parts.*chats counts as conversations"):
        open_parts([tmp_path / "chats", toy.parts[0]], MAX_LENGTH)


def test_categories_of_a_part_that_was_saved_again_stay(toy, tmp_path):
    part = opened(toy.parts[0])
    datasets.load_from_disk(str(toy.parts[0])).save_to_disk(str(tmp_path / "again"), num_shards=2)
    again = opened(tmp_path / "again")
    assert isinstance(again, TokenizedPart)
    assert categories_of([again, part]) == ("a", "b")
    collator = Collator(pad_token_id=0, max_length=MAX_LENGTH, categories=2)
    batches = [RowReader([each], collator, ("a", "b")).micro_batch([[3], [7]]) for each in (part, again)]
    assert (batches[0].target_categories == batches[1].target_categories).all()
    assert (batches[0].labels == batches[1].labels).all()


def test_ids_and_padding_are_compared_with_the_tokenizer(toy, tmp_path):
    tokenizer = load_tokenizer(toy.model)
    large = opened(saved(tmp_path / "large", input_ids=[[5, 6], [7, 203, 8]]))
    assert "row 1 has the id 203, and the model's tokenizer has 203 ids" in tokenizer_problem(large, tokenizer, 203)
    assert tokenizer_problem(large, tokenizer, 204) is None
    words = list(range(10, 20))
    for name, ids in (("right", words + [2] * 6), ("left", [0] * 6 + words)):
        part = opened(saved(tmp_path / name, input_ids=[ids] * 5))
        assert "5 of 5 rows have the special token of id" in tokenizer_problem(part, tokenizer, 203)
    ended = opened(saved(tmp_path / "ended", input_ids=[[*words, 2], [9] * 12]))
    assert tokenizer_problem(ended, tokenizer, 203) is None


def test_the_example_of_the_document_is_one(project_root, tmp_path, monkeypatch):
    blocks = python_blocks(project_root / "docs" / "prepared_data.md")
    (example,) = [block for block in blocks if 'save_to_disk("tokenized")' in block]
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    part = opened(tmp_path / "tokenized")
    assert (part.kind, part.tokens, part.facts.target_tokens) == ("pretrain", 7, 4)


def test_what_was_read_is_described(toy, tmp_path):
    masks = [[1, 1, 1, 0], [1, 1, 0, 0]]
    path = saved(tmp_path / "set", input_ids=[[1, 6, 7, 0], [1, 8, 0, 0]], attention_mask=masks, text=["a", "b"])
    said = "\n".join(describe(opened(path), load_tokenizer(toy.model)))
    for text in (
        "(1 file): 2 rows of 2 to 3 tokens; 2 documents (one a row); 5 tokens, 3 of them targets (no labels: all but",
        "largest id 8; 3 tokens of padding left out; columns not read: text",
        "counts as pre-training data, since 0 of 2 rows begin with tokens that are no targets",
        "row 0 begins '<s> w6 w7'",
    ):
        assert text in said


REFUSED = {
    "no rows": ({"input_ids": [[1]]}, "holds no rows"),
    "long rows": ({"input_ids": [[5], [6] * 97, [7] * 98]}, "2 of 3 rows are longer than --max_length 96 (row 1"),
    "no target": ({"input_ids": [[5, 6]], "labels": [[5, -100]]}, "holds no target"),
    "empty row": ({"input_ids": [[5, 6], [5, 6], []]}, "row 2: it holds no token: leave such rows out"),
    "texts": ({"text": ["a"]}, "has no column input_ids (it has text): texts and conversations are prepared with"),
    "tokens": ({"tokens": [[5]]}, "save it again with rename_column('tokens', 'input_ids')"),
    "unknown masks": ({"input_ids": [[5]], "loss_mask": [[1]]}, "whose meaning is not known here (loss_mask)"),
    "weights": ({"input_ids": [[5]], "weights": [[0.5]]}, "whose meaning is not known here (weights)"),
    "missing row": ({"input_ids": [[5], None]}, "row 1: input_ids is missing"),
    "missing id": ({"input_ids": [[5], [5, None]]}, "row 0: input_ids has missing values in it, or in one of the 1"),
    "bytes": ({"input_ids": ["ab"]}, "the column input_ids has the type string, and lists of integers are needed"),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "said"), REFUSED.values(), ids=list(REFUSED))
def test_what_cannot_be_trained_on_is_refused_in_one_sentence(tmp_path, columns, said):
    path = saved(tmp_path / "set", **columns)
    if said == "holds no rows":
        datasets.load_from_disk(str(path)).select([]).save_to_disk(str(tmp_path / "empty"))
        path = tmp_path / "empty"
    assert said in refused(path)


def test_files_that_differ_or_are_damaged_are_named(rows, tmp_path):
    path = save(rows, tmp_path / "set", as_they_are, 3)
    first, second, _ = sorted(path.glob("*.arrow"))
    whole = second.read_bytes()
    shutil.copy(next(save(rows, tmp_path / "other", as_they_are, dtype="int32").glob("*.arrow")), second)
    assert f"{second} has no column input_ids, or of another type than {first.name}" in refused(path)
    second.write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in refused(path)
    second.unlink()
    assert f"{second} is missing" in refused(path)
    second.write_bytes(whole)
    opened(path)
    for number in range(60):  # a bit of every kind of byte: refused, or another fingerprint
        content = bytearray(whole)
        position = number * len(whole) // 60
        content[position] ^= 1 << number % 8
        second.write_bytes(content)
        try:
            opened(path)
        except UserError as error:
            assert str(path) in str(error)  # noqa: PT017
    (path / "state.json").write_text(json.dumps({"_data_files": [{}]}))
    assert "does not name" in refused(path)


@pytest.mark.parametrize("column", ["input_ids", "labels", "document_lengths"])
@pytest.mark.parametrize("bit", [1, 20, 31])
def test_a_wrong_offset_is_found_before_it_is_followed(rows, tmp_path, column, bit):
    path = save(rows, tmp_path / "set", as_they_are)
    (file,) = path.glob("*.arrow")
    content = bytearray(file.read_bytes())
    offsets = pa.ipc.open_stream(bytes(content)).read_all().column(column).chunk(0).offsets.to_numpy()
    content[content.find(offsets.tobytes()) + 4 * 10 + bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)
    assert str(path) in refused(path)


def test_a_file_that_becomes_shorter_is_named_and_not_read(rows, tmp_path):
    path = save(rows, tmp_path / "set", as_they_are)
    reader = RowReader([opened(path)], Collator(pad_token_id=0, max_length=MAX_LENGTH))
    reader.micro_batch([[3]])
    (file,) = path.glob("*.arrow")
    os.truncate(file, 100)
    with pytest.raises(UserError, match="has become shorter"):
        reader.micro_batch([[3]])
