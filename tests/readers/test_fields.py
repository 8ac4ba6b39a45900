"""Fields: columns of public corpora are found, what is chosen is said, and bad ones are named."""

from pathlib import Path

import pytest

from colossal_llama.readers.column_messages import SHOWN_MESSAGES, ColumnMessages
from colossal_llama.readers.fields import (
    BY_DIRECTORY,
    CHOSEN,
    CONVERSATION,
    DOCUMENT,
    Document,
    FieldOptions,
    TextFields,
    document_of,
    field_problems,
    plain_text_of,
    refuse_document,
    with_category,
    with_file_categories,
)
from colossal_llama.readers.formats import Format
from colossal_llama.readers.listing import InputFile
from colossal_llama.readers.record import RecordError


def input_file(name="corpus/zh/a.jsonl") -> InputFile:
    return InputFile(Path("/data") / name, name, 1, 1, Format(".jsonl"))


def read(record, name="corpus/zh/a.jsonl", **options) -> Document:
    return document_of(record, input_file(name), FieldOptions(**options))


def chosen(document: Document) -> list[str]:
    return [note.removeprefix(CHOSEN) for note in document.notes if note.startswith(CHOSEN)]


def refusal(record, **options) -> RecordError:
    with pytest.raises(RecordError) as raised:
        read(record, **options)
    return raised.value


CORPORA = {
    "C4": {"text": "T", "timestamp": "2019-04-25T12:57:54Z", "url": "https://a"},
    "FineWeb": {"text": "T", "id": "1", "dump": "CC", "url": "u", "language_score": 0.9, "token_count": 3},
    "RefinedWeb": {"content": "T", "url": "u", "timestamp": 1, "dump": "CC", "segment": "1", "image_urls": []},
    "RedPajama": {"text": "T", "meta": {"language": "en"}, "red_pajama_subset": "wikipedia"},
    "RedPajama 2": {"raw_content": "T", "doc_id": "1", "meta": "{}", "quality_signals": "{}"},
    "the Pile": {"text": "T", "meta": {"pile_set_name": "Github"}},
    "StarCoder": {"max_stars_repo_path": "a.py", "max_stars_count": 1, "id": "1", "content": "T"},
    "WuDao": {"id": 1, "uniqueKey": "k", "titleUkey": "k", "dataType": "百科", "title": "t", "content": "T"},
    "SkyPile": {"text": "T"},
    "MNBVC": {"文件名": "a.txt", "simhash": 1, "段落": [{"行号": 1, "内容": "T"}, {"行号": 2, "内容": ""}]},
    "a spreadsheet": {"ID": "1", "Text ": "T"},
    "a table of optional columns": {"source": None, "target": None, "text": None, "content": "T", "category": None},
}


@pytest.mark.parametrize("record", CORPORA.values(), ids=CORPORA)
def test_public_corpora_are_read_whole(record):
    document = read(record)
    assert document == Document("", "T", "zh")
    assert BY_DIRECTORY in document.notes
    assert chosen(document) == []


@pytest.mark.parametrize(
    ("record", "document", "message"),
    [
        ({"text": "T", "content": "C"}, ("", "T"), '"text", not "content"'),
        ({"text": "T", "source": "cc_news"}, ("", "T"), '"text", not "source"'),
        ({"source": "S", "target": "T", "text": "X"}, ("S", "T"), '"source" and "target", not "text"'),
        ({"text": "T", "messages": []}, ("", "T"), '"text", not "messages"'),
        ({"text": "T", "prompt": "P", "completion": "C"}, ("", "T"), '"text", not "prompt" and "completion"'),
        ({"text": ["a"], "content": "T"}, ("", "T"), None),  # a list of words does not fit
        ({"text": "T", "title": "X", "id": "1"}, ("", "T"), None),
        ({"source": "S", "target": "T"}, ("S", "T"), None),
        ({"source": None, "target": "T"}, ("", "T"), None),
        ({"target": "T"}, ("", "T"), None),
    ],
)
def test_what_is_chosen_of_several_columns_is_counted(record, document, message):
    found = read(record)
    assert (found.source, found.target) == document
    assert chosen(found) == ([message] if message else [])


@pytest.mark.parametrize(
    ("record", "options", "document"),
    [
        ({"text": "X", "body": "T"}, {"text_field": "body"}, ("", "T", "zh")),
        ({"meta": {"body": "T"}}, {"text_field": "meta.body"}, ("", "T", "zh")),
        ({"meta": '{"body": "T"}'}, {"text_field": "meta.body"}, ("", "T", "zh")),
        ({"meta.body": "T", "meta": {"body": "X"}}, {"text_field": "meta.body"}, ("", "T", "zh")),
        ({"q": "S", "a": "T"}, {"source_field": "q", "target_field": "a"}, ("S", "T", "zh")),
        ({"q": None, "a": "T"}, {"source_field": "q", "target_field": "a"}, ("", "T", "zh")),
        ({"source": "S", "a": "T"}, {"target_field": "a"}, ("S", "T", "zh")),
        ({"title": "S", "text": "T"}, {"source_field": "title"}, ("S", "T", "zh")),
        ({"text": "T", "meta": {"lang": "en"}}, {"category_field": "meta.lang"}, ("", "T", "en")),
        ({"text": "T", "label": 3}, {"category_field": "label"}, ("", "T", "3")),
        ({"text": "wiki", "content": "T"}, {"category_field": "text"}, ("", "T", "wiki")),
        ({"text": "S", "content": "T"}, {"source_field": "text"}, ("S", "T", "zh")),
        ({"category": "T"}, {"text_field": "category", "category_from": "x"}, ("", "T", "x")),
        ({"text": "T", "category": ["x"]}, {"category_from": "directory"}, ("", "T", "zh")),
        ({"text": "T", "category": "x"}, {"category_from": "file"}, ("", "T", "a")),
        ({"text": "T", "category": "x"}, {"category_from": "books"}, ("", "T", "books")),
        ({"text": "T", "category": "x"}, {"category_from": "field"}, ("", "T", "x")),
    ],
)
def test_options_name_the_columns(record, options, document):
    found = read(record, **options)
    assert (found.source, found.target, found.category) == document
    assert BY_DIRECTORY not in found.notes or not {"category_field", "category_from"} & options.keys()


@pytest.mark.parametrize(
    ("record", "options", "reason", "words"),
    [
        ({"id": 1, "sentence": "x"}, {}, "missing_field", 'the record has "id", "sentence"; --text_field'),
        ({"id": 1, "text": "x"}, {"text_field": "body"}, "missing_field", '"body" is missing: the record has "id"'),
        ({"meta": {"a": "x"}}, {"text_field": "meta.b"}, "missing_field", '"meta.b" is missing'),
        ({"meta": "{x"}, {"text_field": "meta.b"}, "missing_field", '"meta.b" is missing'),
        ({"text": None}, {}, "null_field", '"text" is null'),
        ({"text": ["a", "b"]}, {}, "wrong_type", '"text" is a list'),
        ({"text": {"a": 1}}, {}, "wrong_type", '"text" is an object'),
        ({"text": ""}, {}, "empty_target", '"text" is empty'),
        ({"text": "x", "category": True}, {}, "wrong_type", '"category" is true or false'),
        ({"text": "x", "category": 1.5}, {}, "wrong_type", '"category" is a number'),
        ({"text": "x", "category": ["a"]}, {}, "wrong_type", "--category_from directory"),
        ({"text": "x", "category": ""}, {}, "empty_category", "--category_from"),
        ({"text": "x"}, {"category_from": "field"}, "missing_field", '"category" is missing'),
        ({"text": "x"}, {"category_field": "lang"}, "missing_field", '"lang" is missing'),
        ({"text": "x", "lang": None}, {"category_field": "lang"}, "null_field", '"lang" is null'),
        ({"text": "x"}, {"source_field": "title"}, "missing_field", '"title" is missing'),
        ({"a\nb" * 200: 1}, {}, "missing_field", 'the record has "a?ba?b'),
        ({}, {}, "missing_field", "the record has nothing"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_read_is_named_with_the_columns_there_are(record, options, reason, words):
    error = refusal(record, **options)
    assert error.reason == reason
    assert words in str(error)
    assert len(str(error)) < 600
    assert "\n" not in str(error)


def test_columns_that_are_named_are_not_sought_in_plain_texts():
    """A folder of tables and notes is prepared by one command."""
    file = InputFile(Path("/data/zh/a.md"), "zh/a.md", 1, 1, Format(".md"))
    fields = FieldOptions(text_field="body", category_field="lang")
    assert document_of({"text": "T"}, file, fields) == Document("", "T", "zh")
    assert plain_text_of({"text": "T"}, file, fields).text == "T"
    assert document_of({"text": "T"}, file, FieldOptions(target_field="a", category_from="x")).category == "x"
    with pytest.raises(RecordError, match='"category" is missing'):
        document_of({"text": "T"}, file, FieldOptions(category_from="field"))


CONVERSATIONS = [
    {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
    {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, {"role": "assistant", "content": "A"}]},
    {"instruction": "Q", "input": "", "output": "A"},
    {"prompt": "Q", "completion": "A"},
    {"question": "Q", "answer": "A", "id": 3},
    {"问": "Q", "答": "A"},
    {"instruction": "Q", "input": None, "output": "A", "text": None},
    {"problem": "Q", "solution": "A"},
    {"conversation": [{"human": "Q", "assistant": "A"}]},
    {"data": [["Q", "A"]]},
    {"chat": {"turn_1": {"Human": "Q", "MOSS": "A"}}},
    {"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]'},
    {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
]


@pytest.mark.parametrize("record", CONVERSATIONS, ids=[", ".join(record) for record in CONVERSATIONS])
def test_conversations_are_recognised_and_have_a_text(record):
    error = refusal(record)
    assert error.reason == CONVERSATION
    assert "use prepare_sft_dataset.py" in str(error)
    assert plain_text_of(record, input_file(), FieldOptions()).text == "Q\nA"
    refuse_document(record)


@pytest.mark.parametrize(
    "record",
    [{"text": "T"}, {"source": "", "target": "T", "category": "c"}, CORPORA["WuDao"], {"data": "x", "text": "T"}],
)
def test_documents_are_recognised_among_conversations(record):
    with pytest.raises(RecordError, match=r"use prepare_pretrain_dataset\.py") as raised:
        refuse_document(record)
    assert raised.value.reason == DOCUMENT
    refuse_document({"id": 3})


def test_a_conversation_gets_its_category_from_the_options():
    record, file = {"messages": [], "category": "c", "meta": {"lang": "en"}}, input_file()
    assert with_category(record, file, FieldOptions()) is record
    assert with_category(record, file, FieldOptions(category_field="meta.lang"))["category"] == "en"
    assert with_category(record, file, FieldOptions(category_from="directory"))["category"] == "zh"
    assert with_category({"messages": [], "category": 3}, file, FieldOptions())["category"] == "3"
    assert "category" not in with_category({"messages": [], "category": None}, file, FieldOptions())


def test_files_of_one_name_are_of_different_categories():
    names = ["c/a/train.jsonl", "c/b/train.parquet", "c/x.jsonl.gz", "d/y.jsonl", "d/y.parquet", "d/日\n本.jsonl"]
    files = with_file_categories([input_file(name) for name in names], FieldOptions(category_from="file"))
    found = [document_of({"text": "T"}, file, FieldOptions(category_from="file")).category for file in files]
    assert found[0] == "a/train"
    assert found[2] == "x"
    assert found[5] == "日?本"
    assert len(set(found)) == len(names)


def test_numbered_files_of_a_set_are_of_one_category():
    names = {
        "c4/c4-train.00000-of-01024.json.gz": "c4-train",
        "c4/c4-train.00001-of-01024.json.gz": "c4-train",
        "hf/train-00000-of-00002-0123456789abcdef.parquet": "hf/train",
        "other/train.csv": "other/train",
        "saved/data-00000-of-00002.arrow": "saved",
        "saved/data-00001-of-00002.arrow": "saved",
    }
    fields = FieldOptions(category_from="file")
    files = with_file_categories([input_file(name) for name in names], fields)
    assert {file.name: document_of({"text": "T"}, file, fields).category for file in files} == names


def test_hostile_names_are_not_kept_in_memory():
    from colossal_llama.readers.fields import _columns

    _columns.cache_clear()
    for number in range(50):
        read({"text": "T", f"{number}" * 5_000: 1})
    assert _columns.cache_info().currsize == 0


def test_messages_are_printed_once_a_file_and_not_for_ever(capsys):
    messages = ColumnMessages()
    counts = {"zh": {f'{CHOSEN}"text", not "content"': 3}, "en": {"documents": 3}}
    for _ in range(2):
        for number in range(SHOWN_MESSAGES + 3):
            messages.say(f"zh/{number}\n.jsonl", counts)
    messages.finish()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('zh/0?.jsonl: "text", not "content" is read; --text_field')
    assert len(lines) == SHOWN_MESSAGES + 1
    assert lines[-1].startswith("and 3 more")


def test_a_column_named_category_may_be_the_text_where_no_category_is_read():
    problems = list(field_problems(FieldOptions(text_field="category")))
    assert len(problems) == 1
    assert not list(field_problems(FieldOptions(text_field="category", category_field="lang")))
    assert not list(field_problems(FieldOptions(text_field="category", category_from="directory")))
    assert not list(field_problems(TextFields(text_field="category")))  # learn_pieces
