"""Preparations of columns: what is chosen is said and counted, the other kind is one message."""

import json

import pytest

from colossal_llama.dataset.prepare.manifest import summary
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.utils.errors import UserError
from tests.readers.test_fields import CONVERSATIONS
from tests.support.preparations import preparation


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def tokenizer_dir(any_data):
    return any_data / "tokenizers" / "llama2"


def run(kind, inputs, tokenizer_dir, output, **options):
    return prepare(preparation(kind, inputs, tokenizer_dir, output, num_spliced_dataset_bins=1, **options))


def test_columns_that_are_chosen_are_said_once_a_file_and_counted(tmp_path, tokenizer_dir, capsys):
    write(tmp_path / "in" / "zh" / "a.jsonl", [{"text": "你好", "content": "x"}] * 30)
    file = write(tmp_path / "b.jsonl", [{"source": "Q", "target": "A", "category": "qa"}, {"raw_content": "hello"}])
    manifest = run("pretrain", [file, tmp_path / "in"], tokenizer_dir, tmp_path / "out", max_length=64)
    said = capsys.readouterr().out
    assert said.count('zh/a.jsonl: "text", not "content" is read') == 1
    assert said.count("in/zh/a.jsonl: records without a category are of 'zh', the directory's name") == 1
    assert manifest["totals"]['chosen_columns."text", not "content"'] == 30
    assert manifest["totals"]["unread_keys.content"] == 30
    assert {name: counts["documents"] for name, counts in manifest["categories"].items()} == {
        "zh": 30, "qa": 1, tmp_path.name: 1
    }  # fmt: skip
    assert 'columns that are read: "text", not "content"  30' in summary(manifest)
    assert "category from the directory's name: 31" in summary(manifest)


def test_a_preparation_is_that_of_its_columns(tmp_path, tokenizer_dir):
    for name in ("a", "b"):
        write(tmp_path / "in" / name / "train.jsonl", [{"text": "one", "meta": {"body": f"two {name}"}}])
    options = {"text_field": "meta.body", "category_from": "file"}
    manifest = run("pretrain", [tmp_path / "in"], tokenizer_dir, tmp_path / "out", **options)
    assert set(manifest["categories"]) == {"a/train", "b/train"}
    assert manifest["identity"]["arguments"].items() >= options.items()
    assert run("pretrain", [tmp_path / "in"], tokenizer_dir, tmp_path / "out", **options) == manifest
    with pytest.raises(UserError, match=r"text_field: meta\.body then, None now"):
        run("pretrain", [tmp_path / "in"], tokenizer_dir, tmp_path / "out", category_from="file")


@pytest.mark.parametrize("record", CONVERSATIONS, ids=[", ".join(record) for record in CONVERSATIONS])
def test_conversations_are_one_message(record, tmp_path, tokenizer_dir):
    write(tmp_path / "in" / "a.jsonl", [record] * 30)
    with pytest.raises(UserError) as raised:
        run("pretrain", [tmp_path / "in"], tokenizer_dir, tmp_path / "out")
    (problem,) = raised.value.problems
    assert f"{tmp_path}/in/a.jsonl:1: these look like conversations" in problem
    assert "use prepare_sft_dataset.py" in problem
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("record", [{"text": "x"}, {"content": "x", "title": "t"}, {"source": "", "target": "x"}])
def test_documents_are_one_message_of_the_script_of_conversations(record, tmp_path, tokenizer_dir):
    write(tmp_path / "in" / "a.jsonl", [record] * 30)
    with pytest.raises(UserError) as raised:
        run("sft", [tmp_path / "in"], tokenizer_dir, tmp_path / "out", llama_version=2)
    (problem,) = raised.value.problems
    assert "a.jsonl:1: these look like documents" in problem
    assert "use prepare_pretrain_dataset.py" in problem


def test_bad_records_are_named_with_the_first_of_the_other_kind(tmp_path, tokenizer_dir):
    records = [{"text": 3}, CONVERSATIONS[0], CONVERSATIONS[1], {"text": None}, {"text": "good"}]
    write(tmp_path / "in" / "a.jsonl", records)
    with pytest.raises(UserError) as raised:
        run("pretrain", [tmp_path / "in"], tokenizer_dir, tmp_path / "out")
    assert [problem.split(": ")[0][-1] for problem in raised.value.problems[:-1]] == ["1", "2", "4"]
    manifest = run("pretrain", [tmp_path / "in"], tokenizer_dir, tmp_path / "out", on_bad_record="skip")
    assert manifest["totals"]["rejected_records"] == {
        "looks_like_a_conversation": 2, "null_field": 1, "wrong_type": 1
    }  # fmt: skip


def test_nothing_but_the_other_kind_is_said_where_bad_records_are_skipped(tmp_path, tokenizer_dir):
    write(tmp_path / "in" / "a.jsonl", CONVERSATIONS)
    with pytest.raises(UserError, match=r"looks_like_a_conversation \d+\).*use prepare_sft_dataset\.py"):
        run("pretrain", [tmp_path / "in"], tokenizer_dir, tmp_path / "out", on_bad_record="skip")


def test_conversations_have_the_category_of_the_options(tmp_path, tokenizer_dir):
    record = {"messages": [{"from": "human", "content": "Q"}, {"from": "assistant", "content": "A"}], "lang": "zh"}
    for number, (options, category) in enumerate([
        ({}, "default"), ({"category_field": "lang"}, "zh"), ({"category_from": "directory"}, "chats"),
        ({"category_from": "all"}, "all"),
    ]):  # fmt: skip
        file = write(tmp_path / "chats" / "a.jsonl", [record])
        manifest = run("sft", [file], tokenizer_dir, tmp_path / f"out{number}", llama_version=2, **options)
        assert set(manifest["categories"]) == {category}
        assert ("unread_keys.lang" in manifest["totals"]) == ("category_field" not in options)
