"""Decontamination of documents: those with benchmark questions are dropped, cut or listed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from colossal_llama.cleaning.decontamination.cutting import cut, spans_to_cut
from colossal_llama.cleaning.decontamination.index import NgramSettings, save_index
from colossal_llama.cleaning.decontamination.questions import normalized_questions, read_benchmarks
from colossal_llama.cleaning.decontamination.search import Decontaminator, Hit
from colossal_llama.cleaning.document import Document, Verdict
from colossal_llama.cleaning.rule_settings import Rule
from colossal_llama.utils.errors import UserError

REASON: Final = "decontamination"
HITS_FILE: Final = "decontamination.jsonl"
DROP, CUT, TAG = "drop", "cut", "tag"
"""What `decontamination.action` may be."""
_INDEX_DIRECTORY = "benchmark_questions"


@dataclass(slots=True)
class Outcome:
    """Result of decontamination for a document.

    Attributes:
        verdict: reason to drop it; None where it stays.
        cuts: number of places that were cut out of its texts.
        records: lines of `decontamination.jsonl`: a question each.
    """

    verdict: Verdict | None = None
    cuts: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)


def make_index(
    paths: Sequence[Path], rule: Rule, work_directory: Path, normalize: Callable[[str], str] | None = None
) -> dict[str, Any]:
    """Reads the benchmarks of `--decontaminate`, and makes their index where there is none yet.

    Args:
        paths: directories of benchmarks, and files of own questions.
        rule: `decontamination` of the settings.
        work_directory: of the run; workers open the index there.
        normalize: what documents have gone through before; questions go through it, too.

    Returns:
        What `cleaning.json` tells: `questions`, `unsearched_questions`, `unsearched_by_task`,
        `questions_found_with_choices_alone`, `ngrams`, `settings`, `tasks` with their numbers of
        questions, `notes`; and `directory`, for `DecontaminationRule`.

    Raises:
        UserError: a path holds no question.
    """
    found = read_benchmarks(paths)
    questions = found.questions if normalize is None else normalized_questions(found.questions, normalize)
    facts = save_index(work_directory / _INDEX_DIRECTORY, questions, ngram_settings(rule))
    return {**facts, "tasks": found.counts(), "notes": list(found.notes)}


class DecontaminationRule:
    """Applies the rule to documents, with an index that `make_index` has made."""

    def __init__(self, index_directory: Path, rule: Rule):
        """Opens the index; takes 0.3 s for 37,000 questions."""
        self._search = Decontaminator(index_directory)
        self._action: str = rule.values["action"]
        self._most: int = rule.values["max_ngrams"]

    def apply(self, documents: Sequence[Document]) -> list[Outcome]:
        """Searches documents; with action `cut` they get a new list of texts.

        Of a conversation nothing is cut: it is dropped.
        """
        texts = [text for document in documents for text in document.texts]
        found = iter(self._search.hits(texts))
        return [self._outcome(document, [next(found) for _ in document.texts]) for document in documents]

    def _outcome(self, document: Document, found: Sequence[Sequence[Hit]]) -> Outcome:
        hits = [[hit for hit in of_text if hit.ngrams > self._most] for of_text in found]
        if not any(hits):
            return Outcome()
        action = DROP if self._action == CUT and document.is_conversation else self._action
        outcome = Outcome(records=[_record(document, hit, action) for of_text in hits for hit in of_text])
        if action == CUT:
            texts = list(document.texts)
            for number, of_text in enumerate(hits):
                spans = spans_to_cut(texts[number], [span for hit in of_text for span in hit.spans])
                texts[number] = cut(texts[number], spans)
                outcome.cuts += len(spans)
            document.texts = texts
        if action == DROP or (action == CUT and not document.text.strip()):
            most = max(hit.ngrams for of_text in hits for hit in of_text)
            outcome.verdict = Verdict(REASON, most, self._most)
        return outcome


def _record(document: Document, hit: Hit, action: str) -> dict[str, Any]:
    question = hit.question
    return {
        "task": question.task,
        "subject": question.subject,
        "question": question.index,
        "question_place": question.place,
        "file": document.file,
        "position": document.position,
        "category": document.category,
        "action": action,
        "ngrams": hit.ngrams,
        "share": round(hit.share, 3),
        "text": hit.ngram,
    }


def ngram_settings(rule: Rule) -> NgramSettings:
    """Returns what counts as an n-gram.

    Raises:
        UserError: a length is 0.
    """
    values = {name: rule.values[name] for name in NgramSettings.__dataclass_fields__}
    if problems := [f"{REASON}.{name} is {value}: give 1 or more" for name, value in values.items() if value < 1]:
        raise UserError(problems)
    return NgramSettings(**values)
