"""Decontamination finds planted questions however they are set, and nothing else."""

import json
import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.cleaning.decontamination.decontaminate import DecontaminationRule, Outcome, make_index
from colossal_llama.cleaning.decontamination.folding import canonical
from colossal_llama.cleaning.document import Document
from colossal_llama.cleaning.rule_settings import Rule, read_rules
from colossal_llama.utils.errors import UserError
from tests.support.made_benchmarks import write_benchmarks

ENGLISH = (
    "A ferry leaves the northern harbour at seven and reaches the lighthouse before noon; how many "
    "knots does Captain Müller’s ferry make if the officers measured twenty miles?"
)
CHINESE = "某渡轮早上七点离开北方的港口，并于中午之前抵达灯塔；如果船员测得二十海里，那么这艘渡轮的航速是多少节？"
JAPANESE = (
    "ある連絡船は朝七時に北の港を出て、正午までにガス灯台へ着いた。乗組員が二十海里を測ったなら、船の速さはいくらか。"
)
KOREAN = (
    "한 연락선이 아침 일곱 시에 북쪽 항구를 떠나 정오 전에 등대에 도착하였다 "
    "선원들이 이십 해리를 재었다면 배의 속력은 얼마인가"
)
THAI = "เรือข้ามฟากออกจากท่าเรือทางเหนือตอนเจ็ดโมงเช้าและถึงประภาคารก่อนเที่ยงวันเรือแล่นด้วยความเร็วกี่นอต"
RUSSIAN = "Паром выходит из северной гавани в семь утра и приходит к маяку до полудня, какова скорость парома в узлах?"
HINDI = "एक नाव सुबह सात बजे उत्तरी बंदरगाह से निकलती है और दोपहर से पहले प्रकाशस्तंभ पहुँचती है तो नाव की गति क्या है"
LANGUAGES = {
    "English": ENGLISH,
    "Chinese": CHINESE,
    "Japanese": JAPANESE,
    "Korean": KOREAN,
    "Thai": THAI,
    "Russian": RUSSIAN,
    "Hindi": HINDI,
}
CHOICES = ["five", "nine", "eleven", "thirteen"]


def _rule(**values: Any) -> Rule:
    rule = read_rules()["decontamination"]
    return Rule(True, {**rule.values, **values})


def _questions(path: Path, stems: Sequence[str], **fields: Any) -> Path:
    rows = [{"question": stem, "choices": CHOICES, "answer": "B", **fields} for stem in stems]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _document(*texts: str, **fields: Any) -> Document:
    return Document(list(texts), "docs", "a.jsonl", "a.jsonl", 7, **fields)


def _search(tmp_path: Path, stems: Sequence[str], texts: Sequence[str], **values: Any) -> list[Outcome]:
    rule = _rule(**values)
    facts = make_index([_questions(tmp_path / "own.jsonl", stems)], rule, tmp_path / "work")
    return DecontaminationRule(Path(facts["directory"]), rule).apply([_document("", text) for text in texts])


def _surrounded(question: str) -> str:
    before = "Notes of a day at sea, and what the crew has written down about it. 海上一日的记录。\n"
    return f"{before}{question}\n{before[::-1]}"


CHANGES = {
    "as it is": lambda text: text,
    "upper case": str.upper,
    "white space": lambda text: re.sub(r"\s", " \n\t\u3000", text),
    "no punctuation": lambda text: "".join(" " if unicodedata.category(c)[0] == "P" else c for c in text),
    "other punctuation": lambda text: re.sub(r"[,;:?.，；？。、]", " ... ", text).replace("’", "'"),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "soft hyphens": lambda text: re.sub(r"(?<=[a-zа-я])(?=[a-zа-я])", "\u00ad", text),
    "ligatures": lambda text: text.replace("ffi", "ﬃ").replace("ff", "ﬀ").replace("fi", "ﬁ"),
    "markup": lambda text: f"**{text.replace(' ', ' *', 1)}*<br/>",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("language", LANGUAGES)
def test_planted_question_is_found(language: str, change: str, tmp_path: Path) -> None:
    question = LANGUAGES[language]
    planted = _surrounded(CHANGES[change](question))
    outcomes = _search(tmp_path, LANGUAGES.values(), [planted, _surrounded("")])
    assert [record["question"] for record in outcomes[0].records] == [list(LANGUAGES).index(language)]
    assert outcomes[0].records[0]["share"] > 0.2  # the choices are absent
    assert outcomes[0].verdict is not None
    assert outcomes[0].verdict.reason == "decontamination"
    assert outcomes[1] == Outcome()


def test_hit_names_question_and_document(tmp_path: Path) -> None:
    document = Document(["intro", _surrounded(ENGLISH)], "诗", "group", "dir/b.jsonl", 12)
    rule = _rule()
    own = _questions(tmp_path / "own.jsonl", [CHINESE, ENGLISH], subject="ferries")
    facts = make_index([own], rule, tmp_path / "work")
    outcome = DecontaminationRule(Path(facts["directory"]), rule).apply([document])[0]
    [record] = outcome.records
    assert record | {"ngrams": 0, "share": 0, "text": ""} == {
        "task": "own",
        "subject": "ferries",
        "question": 1,
        "question_place": "line 2",
        "file": "dir/b.jsonl",
        "position": 12,
        "category": "诗",
        "action": "drop",
        "ngrams": 0,
        "share": 0,
        "text": "",
    }
    assert record["text"] == ENGLISH[:-1]
    assert outcome.verdict is not None
    assert outcome.verdict.figure == record["ngrams"] > outcome.verdict.limit == 0


def test_place_is_that_of_the_document_behind_rewritten_characters(tmp_path: Path) -> None:
    text = f"ﬁﬀ e\u0301 \u00ad\u00ad {CHANGES['ligatures'](ENGLISH)} ﬁn"
    [outcome] = _search(tmp_path, [ENGLISH], [text])
    assert outcome.records[0]["text"] == CHANGES["ligatures"](ENGLISH)[:-1]


def test_all_benchmarks_of_a_directory_are_searched(tmp_path: Path) -> None:
    data = write_benchmarks(tmp_path / "data")
    rule = _rule()
    facts = make_index([data], rule, tmp_path / "work")
    assert set(facts["tasks"]) == {"mmlu", "cmmlu", "ceval", "agieval", "gaokao", "gsm8k"}
    assert facts["tasks"]["ceval"] == 2 * (8 + 8)  # the test split, which has no answers, too
    single = make_index([data / "mmlu"], rule, tmp_path / "work")
    assert single["tasks"] == {"mmlu": facts["tasks"]["mmlu"]}
    rows = (data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    question = json.loads(rows[2])["question"]
    search = DecontaminationRule(Path(facts["directory"]), rule)
    [outcome] = search.apply([_document("", f"{question} {ENGLISH}")])
    if len(canonical(question).split()) >= rule.values["words"]:
        assert ("gsm8k", 2) in {(record["task"], record["question"]) for record in outcome.records}


def test_file_without_answers_is_searched(tmp_path: Path) -> None:
    own = tmp_path / "held_out.json"
    own.write_text(json.dumps({"name": "x", "items": [{"problem": CHINESE}, {"problem": ENGLISH}]}), encoding="utf-8")
    facts = make_index([own], _rule(), tmp_path / "work")
    assert (facts["questions"], facts["unsearched_questions"]) == (2, 0)


def test_short_question_is_searched_as_a_whole_or_counted(tmp_path: Path) -> None:
    stems = [
        "How tall is the lighthouse of the north?",
        "What is fog?",
        "北方的灯塔究竟有多高呢",
        "北方灯塔的高度究竟是多少米",
    ]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"prompt": stem, "target": "x"}) + "\n" for stem in stems), encoding="utf-8")
    rule = _rule()
    facts = make_index([own], rule, tmp_path / "work")
    assert facts["unsearched_questions"] == 2
    assert facts["unsearched_by_task"] == {"own": 2}
    search = DecontaminationRule(Path(facts["directory"]), rule)
    found = search.apply([_document("", f"It was asked: {stem} Nobody knew. 无人知道。") for stem in stems])
    assert [len(outcome.records) for outcome in found] == [1, 0, 0, 1]
    [part] = search.apply([_document("", "How tall is the lighthouse of the south?")])
    assert part == Outcome()


def test_question_with_a_short_stem_is_found_with_its_choices(tmp_path: Path) -> None:
    choices = ["the grey one", "the ferry of the north", "the old light", "none of these four"]
    row = {"question": "Which is best?", "choices": choices, "answer": "A"}
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps(row) + "\n" + json.dumps({**row, "question": ENGLISH}) + "\n", encoding="utf-8")
    facts = make_index([own], _rule(), tmp_path / "work")
    assert (facts["questions_found_with_choices_alone"], facts["unsearched_questions"]) == (1, 0)
    marked = [f"({letter}) {choice}" for letter, choice in zip("ABCD", choices, strict=True)]
    texts = [" ".join(["Which is best?", *marked]), json.dumps(["Which is best?", *choices]), "Which is best?"]
    found = DecontaminationRule(Path(facts["directory"]), _rule()).apply([_document("", text) for text in texts])
    assert [bool(outcome.records) for outcome in found] == [True, True, False]


def test_wording_of_an_exam_does_not_count(tmp_path: Path) -> None:
    wording = "Which one of the following, if true, most seriously weakens the argument that is made above"
    names = ["anchor", "beacon", "canvas", "deck", "engine", "funnel", "galley", "harbour", "island"]
    stems = [f"The {name} of our old ferry is {name}s own affair. {wording}?" for name in names]
    assert _search(tmp_path, stems, [f"{wording}?"])[0] == Outcome()
    assert _search(tmp_path, stems[:8], [f"{wording}?"])[0].records  # a passage may have eight questions
    assert _search(tmp_path, stems, [f"{wording}?"], most_questions=9)[0].records


def test_lists_of_numbers_and_letters_do_not_count(tmp_path: Path) -> None:
    numbers = " ".join(map(str, range(1, 30)))
    letters = " ".join("abcdefghijklmnopqrstuvwxyz")
    again = "the ferry, " * 20
    stems = [f"Continue: {numbers}", f"Continue: {letters}", f"Continue: {again}"]
    assert _search(tmp_path, stems, [numbers, letters, again]) == [Outcome()] * 3


def test_words_alike_in_their_ends_are_compared_whole(tmp_path: Path) -> None:
    one, other = (
        "a ferry with some " + "abcdefgh" + middle + "hgfedcba" + " went to the old harbour of the north"
        for middle in ("xx", "yy")
    )
    assert _search(tmp_path, [one], [one])[0].records
    assert _search(tmp_path, [one], [other])[0] == Outcome()


@pytest.mark.parametrize(("words", "shortest"), [(13, 8), (5, 3), (1, 1), (30, 20)])
def test_ngrams_are_those_of_a_plain_search(words: int, shortest: int, tmp_path: Path) -> None:
    choice = random.Random(words)
    vocabulary = (
        ["ferry", "Light-house", "NORTH", "harbours", "extraordinarily", "mist", "wind"]
        if words > 5
        else ["".join(choice.choices("abcdefgh", k=6)) for _ in range(3000)]
    )
    stems = [" ".join(choice.choices(vocabulary, k=choice.randint(words, 60))) for _ in range(40)]
    texts = []
    for _ in range(60):
        stem = choice.choice(stems).split()
        begin = choice.randrange(len(stem))
        piece = stem[begin : begin + choice.randint(1, 2 * words)]
        texts.append(" ".join([*choice.choices(vocabulary, k=20), *piece, *choice.choices(vocabulary, k=20)]))
    values = {"words": words, "shortest_words": shortest, "most_questions": 1000}
    outcomes = _search(tmp_path, stems, texts, **values)

    def ngrams(text: str) -> set[str]:
        tokens = canonical(text).split()
        found = (tokens[begin : begin + words] for begin in range(len(tokens) - words + 1))
        return {" ".join(ngram) for ngram in found if 2 * len(set(ngram)) >= words}

    of_stems = [ngrams(stem) for stem in stems]
    for text, outcome in zip(texts, outcomes, strict=True):
        of_text = ngrams(text)
        expected = {number for number, of_stem in enumerate(of_stems) if of_stem & of_text}
        assert {record["question"] for record in outcome.records} == expected


def test_ngram_does_not_run_over_the_end_of_a_document(tmp_path: Path) -> None:
    words = [f"harbour{number}" for number in range(30)]  # all ASCII: such texts are searched together
    question = " ".join(words)
    assert _search(tmp_path, [question], [" ".join(words[:8]), " ".join(words[8:16])]) == [Outcome()] * 2
    facts = make_index([_questions(tmp_path / "own.jsonl", [question])], _rule(), tmp_path / "work")
    two_texts = _document(" ".join(words[:15]), " ".join(words[15:29]))
    [outcome] = DecontaminationRule(Path(facts["directory"]), _rule()).apply([two_texts])
    assert [record["ngrams"] for record in outcome.records] == [3, 2]


def test_cut_takes_the_lines_of_the_question(tmp_path: Path) -> None:
    lines = ["Before the question stands a line.", ENGLISH, "And one stands behind it."]
    long_line = f"{'before ' * 100}{ENGLISH}{' behind' * 100}"
    rule = _rule(action="cut")
    facts = make_index([_questions(tmp_path / "own.jsonl", [ENGLISH])], rule, tmp_path / "work")
    search = DecontaminationRule(Path(facts["directory"]), rule)
    documents = [
        _document("source", "\n".join(lines)),
        _document("", long_line),
        _document("", ENGLISH),
        _document("hello", ENGLISH, roles=("user", "assistant")),
    ]
    outcomes = search.apply(documents)
    assert documents[0].texts == ["source", f"{lines[0]}\n{lines[2]}"]
    assert (outcomes[0].verdict, outcomes[0].cuts, outcomes[0].records[0]["action"]) == (None, 1, "cut")
    assert set(documents[1].texts[1].split()) == {"before", "behind"}
    assert len(documents[1].texts[1]) > len(long_line) - len(ENGLISH) - 420
    assert outcomes[2].verdict is not None  # nothing is left
    assert outcomes[3].verdict is not None
    assert documents[3].texts[1] == ENGLISH
    assert outcomes[3].records[0]["action"] == "drop"


def test_tag_lists_alone_and_few_ngrams_may_be_allowed(tmp_path: Path) -> None:
    [outcome] = _search(tmp_path, [ENGLISH], [ENGLISH], action="tag")
    assert outcome.verdict is None
    assert outcome.records[0]["action"] == "tag"
    part = " ".join(ENGLISH.split()[:14])
    assert _search(tmp_path, [ENGLISH], [part], max_ngrams=2)[0] == Outcome()
    assert _search(tmp_path, [ENGLISH], [part], max_ngrams=1)[0].verdict is not None


def test_index_is_made_once_for_questions_and_settings(tmp_path: Path) -> None:
    own = _questions(tmp_path / "own.jsonl", [ENGLISH])
    first = make_index([own], _rule(), tmp_path / "work")
    written = (Path(first["directory"]) / "keys.npy").stat().st_mtime_ns
    assert make_index([own], _rule(action="tag"), tmp_path / "work") == first
    assert (Path(first["directory"]) / "keys.npy").stat().st_mtime_ns == written
    assert make_index([own], _rule(words=12), tmp_path / "work")["directory"] != first["directory"]
    _questions(own, [CHINESE])
    assert make_index([own], _rule(), tmp_path / "work")["directory"] != first["directory"]


def test_questions_go_through_what_documents_went_through(tmp_path: Path) -> None:
    rule = _rule()
    own = _questions(tmp_path / "own.jsonl", [CHINESE.replace("灯", "燈")])
    facts = make_index([own], rule, tmp_path / "work", lambda text: text.replace("燈", "灯"))
    assert DecontaminationRule(Path(facts["directory"]), rule).apply([_document("", CHINESE)])[0].records


def test_what_holds_no_question_is_refused_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    with pytest.raises(UserError) as caught:
        make_index([tmp_path / "empty", tmp_path / "other.jsonl"], _rule(), tmp_path / "work")
    assert len(caught.value.problems) == 2
    assert "holds no benchmark" in caught.value.problems[0]
    assert "other.jsonl" in caught.value.problems[1]
