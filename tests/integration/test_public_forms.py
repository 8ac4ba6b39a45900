"""Data in its published forms becomes what the same records as plain jsonl become."""

from pathlib import Path

import pytest

from tests.support import format_scripts
from tests.support.public_forms import CONVERSATION_FORMS, DOCUMENT_FORMS, PUBLIC_FORMS, PublicForm, write_expected


@pytest.fixture
def written(form: PublicForm, tmp_path) -> tuple[Path, Path]:
    """A form as it is published, and as plain jsonl."""
    (tmp_path / "data").mkdir()
    form.write(tmp_path / "data")
    write_expected(form, tmp_path / "expected")
    (tmp_path / "work").mkdir()
    (tmp_path / "expected_work").mkdir()
    return tmp_path / "data", tmp_path / "expected"


@pytest.mark.parametrize("form", PUBLIC_FORMS, ids=lambda form: form.name)
def test_one_command_prepares_it(form, written, made_llama2, tmp_path):
    prepare = getattr(format_scripts, f"prepare_{form.kind}")
    data, expected = written
    found = prepare([str(data)], made_llama2, tmp_path / "work", *form.options)
    wanted = prepare([str(expected)], made_llama2, tmp_path / "expected_work")
    assert found["rows"] == wanted["rows"]
    assert found["totals"]["records"] == len(form.expected)
    for category, counts in wanted["categories"].items():
        assert found["categories"][category]["tokens_in"] == counts["tokens_in"]
    assert found["categories"].keys() == wanted["categories"].keys()


@pytest.mark.parametrize("form", DOCUMENT_FORMS, ids=lambda form: form.name)
def test_the_other_scripts_read_the_same_texts(form, written, made_llama2, tmp_path):
    data, expected = written
    report, texts = format_scripts.report, format_scripts.evaluation_texts
    found = report([str(data)], made_llama2, tmp_path / "work", *form.options)
    assert found == report([str(expected)], made_llama2, tmp_path / "expected_work")
    text_field = form.options[: 2 * (form.options[:1] == ("--text_field",))]  # it asks for no category
    found = texts([str(data)], made_llama2, tmp_path / "work", *text_field)
    assert found == texts([str(expected)], made_llama2, tmp_path / "expected_work")


@pytest.mark.parametrize("form", CONVERSATION_FORMS, ids=lambda form: form.name)
def test_report_counts_all_texts_of_conversations(form, written, made_llama2, tmp_path):
    found = format_scripts.report([str(written[0])], made_llama2, tmp_path / "work")["total"]
    wanted = format_scripts.report([str(written[1])], made_llama2, tmp_path / "expected_work")["total"]
    blank_lines = form.name == "alpaca"  # one between instruction and input in preparation, none here
    assert found["documents"] == wanted["documents"]
    assert found["characters"] == wanted["characters"] - blank_lines


@pytest.mark.parametrize("form", CONVERSATION_FORMS, ids=lambda form: form.name)
def test_conversations_are_recognised_among_documents(form, written, made_llama2, tmp_path):
    with pytest.raises(format_scripts.Refused, match="prepare_sft_dataset"):
        format_scripts.prepare_pretrain([str(written[0])], made_llama2, tmp_path / "work")


@pytest.mark.parametrize("form", DOCUMENT_FORMS, ids=lambda form: form.name)
def test_documents_are_recognised_among_conversations(form, written, made_llama2, tmp_path):
    with pytest.raises(format_scripts.Refused, match="prepare_pretrain_dataset"):
        format_scripts.prepare_sft([str(written[0])], made_llama2, tmp_path / "work")
