"""Conversations, cleaned: every public form comes out as it is prepared; messages stay whole."""

import pytest

from colossal_llama.cleaning.clean_corpus import parse_arguments
from colossal_llama.cleaning.pipeline import clean
from colossal_llama.cleaning.report_tables import summary
from colossal_llama.dataset.prepare.pipeline import prepare
from tests.support.cleanings import chinese, cleaning, dropped, english, kept, write_records
from tests.support.preparations import content, preparation
from tests.support.public_forms import CONVERSATION_FORMS, DOCUMENT_FORMS

CONVERSATIONS = ("--preset", "conversations")


def conversation(*turns: str, system: str = "", **more) -> dict:
    messages = [{"from": ("human", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)]
    return {"messages": [*([{"from": "system", "content": system}] if system else []), *messages], **more}


def texts(record: dict) -> list[str]:
    return [message["content"] for message in record["messages"]]


@pytest.fixture
def cleaned(tmp_path):
    """Cleans records; gives the report and what is kept."""

    def run(records, *options):
        path = write_records(tmp_path / "raw" / "chat.jsonl", records)
        report = clean(cleaning([path], tmp_path / "out", *CONVERSATIONS, *options))
        return report, kept(tmp_path / "out")

    return run


@pytest.mark.parametrize("form", [*DOCUMENT_FORMS, *CONVERSATION_FORMS], ids=lambda form: form.name)
def test_public_forms_come_out_as_preparation_reads_them(form, tmp_path):
    form.write(tmp_path / "data")
    options = (*(CONVERSATIONS if form.kind == "sft" else ()), *form.options)
    paths = ("--data_input_dirs", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"))
    clean(parse_arguments([*paths, "--num_workers", "1", "--off", "all", *options]))
    assert sorted(kept(tmp_path / "out"), key=str) == sorted(form.expected, key=str)


def test_cleaned_conversations_are_prepared_as_they_were(tmp_path, made_llama2):
    records = [
        conversation(english(1, 3), english(2, 3), system="Answer in one sentence.", category="a"),
        conversation(chinese(3, 3), chinese(4, 3), chinese(5, 3), chinese(6, 3), category="b"),
        {**conversation(english(7, 3), english(8, 3), english(9, 3), english(10, 3)), "id": 7},
    ]
    records[1]["messages"][1]["train"] = False
    raw = write_records(tmp_path / "raw.jsonl", records)
    clean(cleaning([raw], tmp_path / "clean", *CONVERSATIONS))
    rows = []
    for name, source in (("before", raw), ("after", tmp_path / "clean" / "documents")):
        rows_of_2048 = {"max_length": 2048, "num_spliced_dataset_bins": 1, "llama_version": 2}
        prepare(preparation("sft", [source], made_llama2, tmp_path / name, **rows_of_2048))
        rows.append({file: data for file, data in content(tmp_path / name).items() if file.startswith("jsonl")})
    assert rows[0] == rows[1]
    assert len(rows[0]) == 1


def test_each_message_is_normalised_and_masked(cleaned):
    record = conversation(
        "\ufeff请联系　ａｂｃ＠ｍａｉｌ．ｃｏｍ\r\n谢谢你的帮助", "好的，我会打电话给13812345678，请放心。 \n\n\n\n再见"
    )
    report, (result,) = cleaned([record])
    assert texts(result) == ["请联系 <|email|>\n谢谢你的帮助", "好的，我会打电话给<|mobile_number|>，请放心。\n\n再见"]
    assert {"mask.email", "mask.mobile_number", "normalization.controls", "normalization.white_space"} <= set(
        report["changes"]
    )


def test_a_message_that_becomes_empty_drops_its_conversation_as_it_came_in(cleaned, tmp_path):
    record = conversation(english(1, 3), "\x1b[0m", english(2, 3), english(3, 3))
    report, result = cleaned([record, conversation(english(4, 3), english(5, 3))])
    assert report["reasons"].keys() == {"empty"}
    assert len(result) == 1
    assert dropped(tmp_path / "out", "empty")[0]["messages"] == record["messages"]


def test_a_system_prompt_that_all_share_makes_no_duplicates(cleaned):
    system = english(1, 60)
    records = [conversation(english(10 + n, 2), english(50 + n, 2), system=system) for n in range(8)]
    report, result = cleaned([*records, conversation(*texts(records[0])[1:], system=english(2, 3)), records[1]])
    assert len(result) == 8
    assert report["reasons"]["exact_duplicates"]["documents"] == 2
    assert result[0]["messages"][0]["content"] == system


def test_conversations_about_the_same_are_near_duplicates(cleaned):
    question, answer = english(1, 12), english(2, 12)
    report, result = cleaned(
        [conversation(question, answer), conversation(question, answer.replace("river", "lake", 1))]
    )
    assert (len(result), report["reasons"].keys()) == (1, {"near_duplicates"})


def test_words_of_a_list_are_found_in_every_message(cleaned, tmp_path):
    pytest.importorskip("ahocorasick_rs")
    words = tmp_path / "words.txt"
    words.write_text("zanzibar\n")
    records = [
        conversation(english(1, 3), english(2, 3), system="Speak of Zanzibar alone."),
        conversation(english(3, 3), english(4, 3) + " Zanzibar"),
        conversation(english(5, 3), english(6, 3)),
    ]
    _, result = cleaned(records, "--blocklist", f"places={words}")
    assert [texts(record) for record in result] == [texts(records[2])]


def test_roles_of_the_user_are_read_and_what_is_left_out_is_counted(cleaned):
    record = {
        "messages": [
            {"from": "student", "content": english(1, 3)},
            {"from": "narrator", "content": "aside"},
            {"from": "tutor", "content": english(2, 3)},
            {"from": "student", "content": "a question without an answer"},
        ],
        "id": 3,
    }
    roles = ("student=human", "tutor=assistant", "narrator=drop")
    report, (result,) = cleaned([record], "--roles", *roles)
    assert result == conversation(english(1, 3), english(2, 3), category="default")
    (notes,) = report["run"]["notes"].values()
    assert notes["unread_keys.id"] == 1
    assert notes["cut_turns.question_without_an_answer"] == 1
    assert notes["dropped_messages.narrator"] == 1
    assert "key that is not read: id  1" in summary(report)
    with pytest.raises(SystemExit):
        parse_arguments(["--data_input_dirs", "x", "--output_dir", "y", "--roles", *roles])


def test_rules_that_would_break_messages_are_refused(tmp_path, capsys):
    given = ["--data_input_dirs", str(tmp_path), "--output_dir", str(tmp_path / "out"), *CONVERSATIONS]
    with pytest.raises(SystemExit):
        parse_arguments([*given, "--on", "boilerplate", "duplicate_paragraphs"])
    said = capsys.readouterr().err
    assert "--off boilerplate" in said
    assert "--off duplicate_paragraphs" in said
