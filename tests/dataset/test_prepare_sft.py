"""prepare_sft_dataset.py from conversations to rows; long conversations, templates."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colossal_llama.dataset import template_renderer
from colossal_llama.dataset.chat_template import ChatTemplate
from colossal_llama.dataset.conversation import ConversationTemplate, Message
from colossal_llama.dataset.long_conversations import truncated, windows
from colossal_llama.dataset.part_reader import open_parts
from colossal_llama.dataset.prepare.inspection import row_as_text
from colossal_llama.dataset.prepare.manifest import summary
from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.dataset.prepare.verification import verify
from colossal_llama.dataset.template_renderer import ChatTemplateError
from colossal_llama.utils.errors import UserError
from tests.support.preparations import preparation

DAY = "2025-01-31"
CONTROL_STRINGS = ["<s>", "</s>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "Assistant: "]
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="▁\ufdd0")
TEXTS = st.lists(st.text(CHARACTERS, min_size=1, max_size=8) | st.sampled_from(CONTROL_STRINGS), min_size=1, max_size=4)
SEEN = TEXTS.map("".join).map(lambda text: text if text.isprintable() and text.strip() else f"x{text}")  # not blank
TURNS = st.lists(st.tuples(SEEN, SEEN), min_size=1, max_size=8)

TEMPLATE = """{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>

{% if message.role == "assistant" %}{% generation %}{{ message.content }}<|eot_id|>{% endgeneration %}{% else %}
{{- message.content }}<|eot_id|>{% endif %}{% endfor %}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""


@pytest.fixture(scope="module", params=[("llama2", 2), ("llama3-base", 3)], ids=["llama2", "llama3-base"])
def opened_and_version(request, any_data):
    name, version = request.param
    return OpenTokenizer(any_data / "tokenizers" / name), version


@pytest.fixture(scope="module")
def llama3(any_data):
    return OpenTokenizer(any_data / "tokenizers" / "llama3-instruct")


def alternating(turns) -> list[Message]:
    return [
        message for human, assistant in turns for message in (Message("human", human), Message("assistant", assistant))
    ]


def prepared(directory: Path, opened: OpenTokenizer, records, **changes) -> dict:
    (directory / "in").mkdir(exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "in" / "a.jsonl").write_text(text)
    name = Path(opened.tokenizer.name_or_path)
    basic = {"max_length": 512, "num_spliced_dataset_bins": 2, "overwrite": True, **changes}
    return prepare(preparation("sft", (directory / "in",), name, directory / "out", **basic), opened)


def rows_of(directory: Path) -> list[dict]:
    parts = sorted((directory / "out" / "arrow").iterdir())
    return [row for part in parts for row in datasets.load_from_disk(str(part)).to_list()]


def decode_continuation(tokenizer, ids) -> str:
    before = tokenizer.encode("a", add_special_tokens=False)
    return tokenizer.decode([*before, *ids], clean_up_tokenization_spaces=False)[1:]


def test_rows_are_what_the_template_says_and_targets_are_the_answers(tmp_path, opened_and_version):
    opened, version = opened_and_version
    template = ConversationTemplate.for_llama(opened.tokenizer, version, opened.text_encoder)

    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(conversations=st.lists(TURNS, min_size=1, max_size=5))
    def check(conversations):
        records = [
            {"messages": [{"from": message.role, "content": message.content} for message in alternating(turns)]}
            for turns in conversations
        ]
        prepared(tmp_path, opened, records, llama_version=version, max_length=4096)
        rows = rows_of(tmp_path)
        expected = Counter(tuple(template.encode(alternating(turns)).input_ids) for turns in conversations)
        assert Counter(tuple(row["input_ids"]) for row in rows) == expected
        by_ids = {tuple(template.encode(alternating(turns)).input_ids): turns for turns in conversations}
        for row in rows:
            assert row["document_lengths"] == [len(row["input_ids"])]
            answers, answer = [], []
            for token, label in zip(row["input_ids"], row["labels"], strict=True):
                assert label in (-100, token)
                if label != -100 and token == template.turn_end_id:
                    answers.append(decode_continuation(opened.tokenizer, answer))
                    answer = []
                elif label != -100:
                    answer.append(token)
            assert answers == [assistant for _, assistant in by_ids[tuple(row["input_ids"])]]

    check()


@given(turns=TURNS, max_length=st.integers(60, 160))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_windows_train_every_answer_that_fits_once_and_truncation_keeps_a_prefix(llama2_template, turns, max_length):
    messages = [Message("system", "Be brief."), *alternating(turns)]
    batch = llama2_template.encode_batch([messages[:3], messages])
    encode = llama2_template.subset_encoder(messages, batch, 1)
    whole = llama2_template.encode(messages)
    for end in range(1, len(messages) + 1):
        assert encode(messages[:end]) == llama2_template.encode(messages[:end])
    answers = [whole.input_ids[start:end] for start, end in whole.target_spans]
    found, too_long = windows(messages, encode, max_length)
    trained = []
    for window in found:
        assert len(window.input_ids) <= max_length
        assert window.target_spans
        trained += [window.input_ids[start:end] for start, end in window.target_spans]
    assert trained == [answer for number, answer in enumerate(answers) if number not in too_long]
    for number in too_long:
        assert len(encode([messages[0], *messages[1 + 2 * number : 3 + 2 * number]]).input_ids) > max_length
    kept, left_out = truncated(messages, encode, max_length)
    if kept is None:
        assert len(encode(messages[:3]).input_ids) > max_length
    else:
        assert kept.input_ids == whole.input_ids[: len(kept.input_ids)]
        assert len(kept.input_ids) <= max_length
        assert left_out == len(messages) - 1 - 2 * len(kept.target_spans)
        assert not left_out or len(encode(messages[: len(messages) - left_out + 2]).input_ids) > max_length


@pytest.fixture(scope="module")
def llama2_template(any_data):
    return ConversationTemplate.for_llama(OpenTokenizer(any_data / "tokenizers" / "llama2").tokenizer, 2)


@pytest.mark.parametrize("long_conversations", ["truncate", "window"])
def test_long_conversations_are_counted_to_the_token(tmp_path, opened_and_version, long_conversations):
    opened, version = opened_and_version
    turn = [{"from": "human", "content": "q " * 20}, {"from": "assistant", "content": "a " * 20}]
    hopeless = [{"from": "human", "content": "q " * 300}, {"from": "assistant", "content": "a"}]
    records = [{"messages": turn * count} for count in (1, 3, 9)]
    records += [{"messages": hopeless}, {"messages": turn + hopeless + turn}]
    manifest = prepared(
        tmp_path, opened, records, llama_version=version, max_length=200, long_conversations=long_conversations
    )
    totals, rows = manifest["totals"], rows_of(tmp_path)
    lost = sum(count for key, count in totals.items() if key.startswith(("cut_tokens.", "dropped_tokens.")))
    assert totals["tokens_in"] + totals.get("repeated_tokens", 0) == totals["tokens_out"] + lost
    assert totals["tokens_out"] == sum(len(row["input_ids"]) for row in rows)
    assert totals["dropped_documents.no_answer_fits"] == 1
    ends = sum(
        label != -100 and label == row["input_ids"][-1] for row in rows for label in row["labels"]
    )  # every answer ends with the turn end, which is also the last token of a row
    if long_conversations == "window":
        assert ends == 1 + 3 + 9 + 2
        assert totals["cut_answers.answer_too_long"] == 1
    else:
        assert len(rows) == 4
        assert ends < 1 + 3 + 9 + 2
    assert verify(tmp_path / "out")


# ---------------------------------------------------------------------------------- chat templates


def test_a_chat_template_marks_its_answers_and_no_text_becomes_a_control_token(llama3):
    tokenizer = llama3.tokenizer
    template = ChatTemplate(tokenizer, TEMPLATE, "test", DAY, llama3.text_encoder)
    special = {token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert tokenizer.convert_ids_to_tokens(template.turn_end_id) == "<|eot_id|>"

    @settings(max_examples=60, deadline=None)
    @given(turns=TURNS, answer=TEXTS.map("".join))
    def check(turns, answer):
        # The tokenizer joins line breaks at the beginning of an answer with those before it.
        turns, answer = [(question, text.lstrip() or "x") for question, text in turns], answer.lstrip() or "x"
        messages = alternating(turns)
        encoded = template.encode(messages)
        spans = [encoded.input_ids[start:end] for start, end in encoded.target_spans]
        assert all(span[-1] == template.turn_end_id for span in spans)
        assert [decode_continuation(tokenizer, span[:-1]) for span in spans] == [assistant for _, assistant in turns]
        assert sum(token in special for token in encoded.input_ids) == 1 + 3 * len(messages)
        prompt = template.prompt_ids([*messages, Message("human", "x")])
        followed = template.encode([*messages, Message("human", "x"), Message("assistant", answer)])
        assert followed.input_ids[: len(prompt)] == prompt

    check()


def test_a_chat_template_agrees_with_transformers_on_plain_texts(llama3):
    tokenizer = llama3.tokenizer
    messages = [Message("human", "你好, who are you?"), Message("assistant", "An assistant."), Message("human", "ok")]
    ids = ChatTemplate(tokenizer, TEMPLATE, "test", DAY, llama3.text_encoder).encode(messages).input_ids
    names = {"human": "user", "assistant": "assistant"}
    listed = [{"role": names[message.role], "content": message.content} for message in messages]
    assert ids == tokenizer.apply_chat_template(listed, chat_template=TEMPLATE, return_dict=False)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "does not mark"),
        ("x{% for m in messages %}{% generation %}{{ m.content }}<|eot_id|>{% endgeneration %}{% endfor %}", "marks 2"),
        (TEMPLATE.replace("<|eot_id|>{% endgeneration %}", "{% endgeneration %}<|eot_id|>"), "not closed"),
        (TEMPLATE.replace("{%- if add_generation_prompt %}", "{%- if false %}"), "prompt does not end"),
        ("{% generation %}{% endgeneration %}{{ raise_exception('no') }}", "no"),
        ("{% generation %}{% if", "--chat_template"),
    ],
)
def test_unusable_chat_templates_are_refused_with_the_reason(llama3, source, message):
    with pytest.raises(UserError, match=message):
        ChatTemplate(llama3.tokenizer, source, "test", DAY, llama3.text_encoder)


def test_a_tokenizer_without_a_template_is_named(llama3):
    with pytest.raises(UserError, match="no chat template of its own"):
        ChatTemplate.open(llama3.tokenizer, "tokenizer", DAY)


def test_what_a_template_refuses_is_a_bad_record(tmp_path, llama3):
    strict = TEMPLATE.replace(
        "{% for message in messages %}",
        "{% for message in messages %}{% if message.role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    )
    (tmp_path / "t.jinja").write_text(strict)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    records = [{"messages": turns}, {"messages": [{"role": "system", "content": "s"}, *turns]}]
    template = str(tmp_path / "t.jinja")
    with pytest.raises(UserError, match=r"a\.jsonl:2: .*no system"):
        prepared(tmp_path, llama3, records, chat_template=template)
    totals = prepared(tmp_path, llama3, records, chat_template=template, on_bad_record="skip")["totals"]
    assert totals["rejected_records"] == {"refused_by_chat_template": 1}
    assert (totals["records"], totals["documents"], totals["rows"]) == (2, 1, 1)
    (rejected,) = map(json.loads, (tmp_path / "out" / "rejected.jsonl").read_text().splitlines())
    assert (rejected["line"], rejected["reason"]) == (2, "refused_by_chat_template")
    with pytest.raises(ChatTemplateError, match="no system"):
        ChatTemplate(llama3.tokenizer, strict, "strict", DAY, llama3.text_encoder).encode(
            [Message("system", "s"), *alternating([("a", "b")])]
        )


DATED = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}Today: {{ strftime_now('%d %b %Y %H:%M') }}")


def test_a_preparation_has_one_day_whatever_the_clocks_say(tmp_path, any_data, llama3, project_root):
    (tmp_path / "t.jinja").write_text(DATED)
    (tmp_path / "in").mkdir()
    for number in range(4):
        lines = "".join(json.dumps(record) + "\n" for record in conversation_records(3))
        (tmp_path / "in" / f"{number}.jsonl").write_text(lines)

    def shard(index: int, zone: str):
        call = [sys.executable, project_root / "prepare_sft_dataset.py", "--data_input_dirs", tmp_path / "in",
                "--tokenizer_dir", any_data / "tokenizers" / "llama3-instruct", "--data_output_dirs", tmp_path / "out",
                "--num_spliced_dataset_bins", 2, "--num_workers", 1,
                "--chat_template", tmp_path / "t.jinja"]  # fmt: skip
        shards = ["--num_shards", 2, "--shard_index", index] if index < 2 else []
        environment = {**os.environ, "TZ": zone}
        done = subprocess.run(
            [*map(str, [*call, *shards])], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr

    for index, zone in ((0, "UTC+20"), (1, "UTC-14"), (2, "UTC-14")):
        shard(index, zone)
    day = json.loads((tmp_path / "out" / "manifest.json").read_text())["identity"]["template"]["date"]
    shown = f"Today: {datetime.fromisoformat(day):%d %b %Y} 00:00<"
    rows = rows_of(tmp_path)
    assert len(rows) == 12
    assert all(shown in llama3.tokenizer.decode(row["input_ids"]) for row in rows)
    parts = open_parts(sorted((tmp_path / "out" / "arrow").iterdir()), 4096)
    assert {part.chat_template_date for part in parts} == {day}


def test_a_template_that_never_ends_stops_the_run_and_names_the_record(tmp_path, llama3, monkeypatch):
    monkeypatch.setattr(template_renderer, "PROCESSOR_TIME_S", 0.3)
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    (tmp_path / "t.jinja").write_text("{% if messages | length > 2 %}" + endless + "{% endif %}" + TEMPLATE)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for policy in ("stop", "skip"):
        with pytest.raises(UserError, match=r"a\.jsonl:2: .*processor time") as raised:
            prepared(
                tmp_path,
                llama3,
                [{"messages": turns}, {"messages": turns * 2}],
                chat_template=str(tmp_path / "t.jinja"),
                on_bad_record=policy,
            )
        assert len(raised.value.problems) == 1


@pytest.mark.parametrize("long_conversations", ["truncate", "window"])
def test_a_template_that_refuses_a_part_of_a_long_conversation_refuses_the_record(tmp_path, llama3, long_conversations):
    picky = "{% if messages | length == 4 %}{{ 1/0 }}{% endif %}" + TEMPLATE
    (tmp_path / "t.jinja").write_text(picky)
    turns = [{"role": "user", "content": "a " * 20}, {"role": "assistant", "content": "b " * 20}]
    records = [{"messages": turns}, {"messages": turns * 4}]
    manifest = prepared(
        tmp_path,
        llama3,
        records,
        chat_template=str(tmp_path / "t.jinja"),
        on_bad_record="skip",
        long_conversations=long_conversations,
        max_length=200,
    )
    totals = manifest["totals"]
    assert totals["records"] == totals["documents"] + sum(totals["rejected_records"].values()) == 2
    assert verify(tmp_path / "out")


# ------------------------------------------------------------------------------ what is trained


def test_answers_that_are_marked_as_not_trained_are_context(tmp_path, llama3):
    turns = [
        {"role": "user", "content": "What is two plus two?"},
        {"role": "assistant", "content": "Five, obviously.", "weight": 0},
        {"role": "user", "content": "Try again."},
        {"role": "assistant", "content": "Four.", "weight": 1},
        {"role": "user", "content": "Thanks."},
    ]
    manifest = prepared(tmp_path, llama3, [{"messages": turns, "id": 7}])
    (row,) = rows_of(tmp_path)
    targets = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert llama3.tokenizer.decode(targets) == "Four.<|eot_id|>"
    text = llama3.tokenizer.decode(row["input_ids"])
    assert "Five, obviously." in text
    assert "Thanks." not in text
    shown = summary(manifest)
    for line in ("untrained answers: marked_so  1", "cut turns: question_without_an_answer  1",
                 "key that is not read: id  1"):  # fmt: skip
        assert line in shown
    assert "nothing was rejected" not in shown


@given(turns=st.lists(st.tuples(SEEN, SEEN, st.booleans()), min_size=1, max_size=8), max_length=st.integers(60, 160))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_long_conversations_train_what_is_to_be_trained(llama2_template, turns, max_length):
    messages = [Message("system", "Be brief.")]
    for question, answer, is_trained in turns:
        messages += [Message("human", question), Message("assistant", answer, is_trained)]
    whole = llama2_template.encode(messages)
    answers = [whole.input_ids[start:end] for start, end in whole.target_spans]
    wanted = [number for number, (_, _, is_trained) in enumerate(turns) if is_trained]
    found, too_long = windows(messages, llama2_template.encode, max_length)
    trained = [window.input_ids[start:end] for window in found for start, end in window.target_spans]
    assert set(too_long) <= set(wanted)
    assert trained == [answers[number] for number in wanted if number not in too_long]
    kept, _ = truncated(messages, llama2_template.encode, max_length)
    if kept is not None:
        of_prefix = [kept.input_ids[start:end] for start, end in kept.target_spans]
        assert of_prefix == [answers[number] for number in wanted[: len(of_prefix)]]
        assert of_prefix


@pytest.mark.parametrize("chat_template", [None, "llama3-instruct"])
@pytest.mark.parametrize("system", ["You are a guide.", ""])
def test_the_given_system_prompt_is_in_the_rows_and_on_record(tmp_path, llama3, chat_template, system):
    records = [*conversation_records(3), {"messages": conversation_records(1)[0]["messages"], "system": "Be kind."}]
    form = {"chat_template": chat_template, "num_spliced_dataset_bins": 1}
    plain = prepared(tmp_path, llama3, records, **form)
    before = rows_of(tmp_path)
    (tmp_path / "system.txt").write_text(f"{system}\n")
    from_file = prepared(tmp_path, llama3, records, **form, system_file=tmp_path / "system.txt")
    rows_from_file = rows_of(tmp_path)
    manifest = prepared(tmp_path, llama3, records, **form, system=system)
    assert manifest == from_file
    rows = rows_of(tmp_path)
    assert rows == rows_from_file
    texts = [llama3.tokenizer.decode(row["input_ids"]) for row in rows]
    assert sum("Be kind." in text for text in texts) == 1
    assert sum("Be kind." in text or "curious" in text for text in texts) == 1
    arguments, template = (manifest["identity"][name] for name in ("arguments", "template"))
    if chat_template and not system:  # the template has no system prompt by itself
        assert rows == before
        assert manifest["identity"] == plain["identity"]
        return
    assert sum(system in text for text in texts) == (3 if system else 4)
    assert (arguments["system"], template["system"]) == (system, system)
    assert "system" not in plain["identity"]["arguments"]
    part = json.loads((tmp_path / "out" / "arrow" / "part-00000" / "part.json").read_text())
    assert part["conversation_format"] == template
    prepared(tmp_path, llama3, records, **form, system=system, overwrite=False)
    with pytest.raises(UserError, match="system"):
        prepared(tmp_path, llama3, records, **form, system="Another.", overwrite=False)


def test_a_system_prompt_that_fills_the_row_is_refused(tmp_path, llama3):
    for chat_template in (None, "llama3-instruct"):
        with pytest.raises(UserError, match="--max_length 64 leaves no room"):
            prepared(tmp_path, llama3, conversation_records(1), system="long " * 80, max_length=64,
                     chat_template=chat_template)  # fmt: skip


def test_roles_are_what_the_option_says(tmp_path, llama3):
    named = {"Reisende": "a question", "Lotse": "an answer", "tool": "18 degrees"}
    turns = [{"role": role, "content": text} for role, text in named.items()]
    records = [{"messages": turns}, {"messages": turns[:2], "system": "Be kind."}]
    with pytest.raises(UserError, match=r"known roles are human, user, .* --roles Reisende=assistant"):
        prepared(tmp_path, llama3, records)
    roles = [("Lotse", "assistant"), ("tool", "drop"), ("Reisende", "human")]
    manifest = prepared(tmp_path, llama3, records, roles=[*roles, ("Wirt", "human"), ("SYSTEM", "system")])
    said = ["Lotse=assistant: 2 messages", "Reisende=human: 2 messages", "SYSTEM=system: 1 messages"]
    for line in (*said, "tool=drop: 1 messages", "Wirt=human: no message is of this role"):
        assert f"--roles {line}\n" in summary(manifest) + "\n", "a name that was mistyped is seen"
    manifest = prepared(tmp_path, llama3, records, roles=roles)
    texts = [llama3.tokenizer.decode(row["input_ids"]) for row in rows_of(tmp_path)]
    assert all(
        "Human: <|begin_of_text|>a question<|eot_id|>Assistant: <|begin_of_text|>an answer" in text for text in texts
    )
    assert not any("18 degrees" in text for text in texts)
    assert sum("Be kind." in text for text in texts) == 1
    assert manifest["totals"]["dropped_messages.tool"] == 1
    assert "dropped messages: tool  1" in summary(manifest)
    assert manifest["identity"]["arguments"]["roles"] == {"Lotse": "assistant", "Reisende": "human", "tool": "drop"}
    prepared(tmp_path, llama3, records, roles=roles[::-1], overwrite=False)
    with pytest.raises(UserError, match="roles"):
        prepared(tmp_path, llama3, records, roles=[*roles[:2], ("Reisende", "system")], overwrite=False)

    manifest = prepared(tmp_path, llama3, records, roles=[*roles, ("system", "drop")])
    assert not any("Be kind." in llama3.tokenizer.decode(row["input_ids"]) for row in rows_of(tmp_path))
    assert manifest["totals"]["dropped_messages.system"] == 1


def test_columns_of_question_and_answer_are_what_the_options_say(tmp_path, llama3):
    records = [{"problem": "a question", "solution": "a long way", "answer": "an answer", "kind": "sums"}]
    with pytest.raises(UserError, match="may be the answer: leave one, or name it by --target_field"):
        prepared(tmp_path, llama3, records)
    manifest = prepared(tmp_path, llama3, records, target_field="answer", category_field="kind")
    (row,) = rows_of(tmp_path)
    targets = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert llama3.tokenizer.decode(targets) == "an answer<|eot_id|>"
    assert list(manifest["categories"]) == ["sums"]
    assert manifest["totals"]["unread_keys.solution"] == 1
    assert manifest["identity"]["arguments"]["target_field"] == "answer"


# ------------------------------------------------------------------------ inspection of the result


def conversation_records(count: int) -> list[dict]:
    return [
        {"messages": [{"from": "human", "content": f"question {n}"}, {"from": "assistant", "content": f"answer {n}"}]}
        for n in range(count)
    ]


def replace_arrow(path: Path, change) -> None:
    with pa.OSFile(str(path), "rb") as file:
        table = pa.ipc.open_stream(file).read_all()
    rows = table.to_pylist()
    change(rows)
    with path.open("wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=table.schema))


def without_targets(rows: list[dict]) -> None:
    rows[0].update(labels=[-100] * len(rows[0]["labels"]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda part, line: replace_arrow(part, lambda rows: rows[0]["input_ids"].__setitem__(3, 7)), "changed since"),
        (lambda part, line: replace_arrow(part, lambda rows: rows.pop()), "the manifest says"),
        (lambda part, line: replace_arrow(part, without_targets), "no target"),
        (lambda part, line: line.write_text(line.read_text().replace("-100", "-99", 1)), "other content"),
        (lambda part, line: line.unlink(), "is missing"),
        (lambda part, line: part.unlink(), "arrow/part-00001/data-00000-of-00001.arrow is missing"),
        (lambda part, line: (part.parent / "part.json").unlink(), "part.json is missing"),
        (lambda part, line: part.write_bytes(part.read_bytes()[:100]), "cannot be read"),
        (lambda part, line: (part.parent.parent / "part-00002").mkdir(), "is not in the manifest"),
    ],
)  # fmt: skip
def test_verify_finds_what_is_damaged(tmp_path, llama3, damage, message):
    prepared(tmp_path, llama3, conversation_records(6))
    assert "all as in the manifest" in verify(tmp_path / "out")
    part = tmp_path / "out" / "arrow" / "part-00001" / "data-00000-of-00001.arrow"
    damage(part, tmp_path / "out" / "jsonl" / "part-00001.jsonl")
    with pytest.raises(UserError, match=message):
        verify(tmp_path / "out")


def test_shown_rows_tell_targets_from_the_rest(tmp_path, llama3):
    prepared(tmp_path, llama3, conversation_records(1), num_spliced_dataset_bins=1)
    (row,) = rows_of(tmp_path)
    shown = row_as_text(row, llama3.tokenizer, ["default"], with_brackets=True).plain
    assert "document 1 of 1: default" in shown
    assert "⟦answer 0<|eot_id|>⟧" in shown
    assert shown.count("⟦") == 1
    styles = {span.style for span in row_as_text(row, llama3.tokenizer, ["default"], with_brackets=False).spans}
    assert len(styles) == 3


def test_the_script_prepares_shows_and_verifies(tmp_path, any_data, project_root):
    (tmp_path / "in").mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in conversation_records(20))
    (tmp_path / "in" / "a.jsonl").write_text(lines)

    def run(*arguments):
        call = [sys.executable, project_root / "prepare_sft_dataset.py", *arguments]
        return subprocess.run(list(map(str, call)), capture_output=True, text=True, check=False)

    basic = ["--data_input_dirs", tmp_path / "in", "--tokenizer_dir", any_data / "tokenizers" / "llama2",
             "--data_output_dirs", tmp_path / "out", "--num_spliced_dataset_bins", 2]  # fmt: skip
    wrong = run(*basic)  # --llama_version is 3 unless told otherwise
    assert wrong.returncode == 2
    assert "--llama_version" in wrong.stderr
    done = run(*basic, "--llama_version", 2, "--inspect", 1)
    assert done.returncode == 0, done.stderr
    assert "⟦answer" in done.stdout
    checked = run("--verify", tmp_path / "out")
    assert checked.returncode == 0, checked.stderr
    (tmp_path / "out" / "manifest.json").unlink()
    assert run("--verify", tmp_path / "out").returncode == 2
    both = run(*basic, "--llama_version", 2, "--chat_template", "tokenizer")
    assert both.returncode == 2
    assert "--llama_version has no effect" in both.stderr


def test_rows_of_whole_conversations_keep_their_rules(tmp_path, any_data, llama3):
    name = Path(llama3.tokenizer.name_or_path)
    wanted = preparation("sft", (any_data / "sft",), name, tmp_path / "out", limit=60, num_spliced_dataset_bins=3)
    totals = prepare(wanted, llama3)["totals"]
    assert totals["documents"] == 60
    assert verify(tmp_path / "out")
    lengths = [len(row["input_ids"]) for row in rows_of(tmp_path)]
    assert np.max(lengths) <= 4096
