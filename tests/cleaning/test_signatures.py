"""Signatures of duplicates: only what is on is written and found; messages stay."""

import numpy as np

from colossal_llama.cleaning.document import Document
from colossal_llama.cleaning.duplicates.decisions import ChunkDuplicates, merge_duplicates
from colossal_llama.cleaning.duplicates.signatures import DuplicateSettings, DuplicateSignatures
from colossal_llama.cleaning.rule_settings import read_rules
from tests.support.duplicate_texts import made_text

TEXT, OTHER = (made_text(np.random.default_rng(seed), 100, "en") for seed in (0, 1))


def found_in(directory, documents: list[Document], settings: DuplicateSettings) -> ChunkDuplicates:
    """Findings about documents, written in two batches."""
    signatures = DuplicateSignatures(directory, 0, settings)
    signatures.add(documents[:2])
    signatures.add(documents[2:])
    signatures.finish()
    merge_duplicates(directory, [len(documents)], lambda _: [doc.text for doc in documents], settings, 1)
    return ChunkDuplicates(directory, 0, settings)


def documents() -> list[Document]:
    texts = [TEXT, f"{OTHER}\n\n{TEXT}", TEXT, f"{TEXT} end"]
    return [Document(["", text], "made", "made.jsonl", "made.jsonl", number) for number, text in enumerate(texts, 1)]


def settings_of(*on: str) -> DuplicateSettings:
    return DuplicateSettings.of_rules(read_rules("web", on=on, off=["all"]))


def test_only_what_is_on_is_written_and_found(tmp_path):
    names = ["exact_duplicates", "near_duplicates", "duplicate_paragraphs"]
    reasons = {"exact_duplicates": [2], "near_duplicates": [0, 2], "duplicate_paragraphs": []}
    for name in names:
        directory, settings, chunk = tmp_path / name, settings_of(name), documents()
        found = found_in(directory, chunk, settings)
        duplicates = [found.duplicate(number) for number in range(4)]
        assert [number for number in range(4) if duplicates[number]] == reasons[name]
        assert {duplicate.verdict.reason for duplicate in duplicates if duplicate} <= {name}
        assert [path.name for path in directory.iterdir()] == [name]
        cuts = [found.cut_paragraphs(number, document)[0] for number, document in enumerate(chunk)]
        assert cuts == ([0, 1, 1, 0] if name == "duplicate_paragraphs" else [0] * 4)
        assert settings.are_any_on
    assert not settings_of().are_any_on
    found_in(tmp_path / "none", documents(), settings_of())
    assert not (tmp_path / "none").exists()


def test_what_is_found_names_figure_limit_and_the_document_that_stays(tmp_path):
    found = found_in(tmp_path, documents(), DuplicateSettings.of_rules(read_rules("web")))
    exact, near = found.duplicate(2), found.duplicate(0)
    assert (exact.verdict.reason, exact.verdict.figure, exact.kept) == ("exact_duplicates", 1.0, 0)
    assert (near.verdict.reason, near.verdict.limit, near.kept) == ("near_duplicates", "min_similarity 0.8", 3)
    assert 0.98 < near.verdict.figure < 1
    assert found.duplicate(1) is None
    assert found.cut_paragraphs(1, documents()[1]) == (0, 0), "the first document that has the paragraph is dropped"


def test_messages_of_conversations_stay_and_equal_conversations_do_not(tmp_path):
    roles = ("user", "assistant")
    turns = [Document(texts, "c", "g", "f", 1, roles) for texts in ([TEXT, "a"], [TEXT, "b"], [TEXT, "a"])]
    found = found_in(tmp_path, turns, settings_of("exact_duplicates", "duplicate_paragraphs"))
    assert [found.duplicate(number) is not None for number in range(3)] == [False, False, True]
    assert found.cut_paragraphs(1, turns[1]) == (0, 0)
