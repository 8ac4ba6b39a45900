"""The stages of the first pass, in their order: what each document decides by itself.

normalisation → rules → language → blocklists → personal data → decontamination → signatures
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from colossal_llama.cleaning import language
from colossal_llama.cleaning.blocklists import Blocklists
from colossal_llama.cleaning.candidates import Candidate
from colossal_llama.cleaning.decontamination.decontaminate import DecontaminationRule
from colossal_llama.cleaning.document import Document, Verdict
from colossal_llama.cleaning.language import WantedLanguages
from colossal_llama.cleaning.normalization import normalization_of, normalize
from colossal_llama.cleaning.personal_data import PersonalDataSettings, mask
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.rules.judge import judge_texts

Dropped = list[tuple[Candidate, Verdict]]
Stage = Callable[[Sequence[Candidate]], Sequence[Verdict | None]]
"""Changes documents, and says of each why it is dropped, or None."""


@dataclass(frozen=True)
class StageSettings:
    """Settings of the stages, as they travel to the workers.

    Attributes:
        work_dir: where signatures are written.
        rules: in effect.
        blocklists: of the user; empty without any.
        benchmark_questions: directory of the index of `--decontaminate`; None without it.
    """

    work_dir: Path
    rules: RuleSettings
    blocklists: Blocklists = field(default_factory=Blocklists)
    benchmark_questions: Path | None = None


class Stages:
    """The stages of one process."""

    def __init__(self, settings: StageSettings):
        self._settings = settings
        self._normalization = normalization_of(settings.rules)
        self._stages: list[Stage] = [self._judge]
        wanted = WantedLanguages.of_rules(settings.rules)
        if wanted is not None:
            self._stages.append(lambda batch: language.judge([one.document.text for one in batch], wanted))
        if settings.blocklists.lists and settings.rules["blocklists"].on:
            self._stages.append(self._search_blocklists)
        self._personal_data = PersonalDataSettings.of_rules(settings.rules)
        if self._personal_data.on:
            self._stages.append(self._mask)
        if settings.benchmark_questions is not None:
            self._decontamination = DecontaminationRule(settings.benchmark_questions, settings.rules["decontamination"])
            self._stages.append(self._decontaminate)

    def apply(self, batch: list[Candidate]) -> tuple[list[Candidate], Dropped]:
        """Changes and judges documents.

        Returns:
            Those that no stage has dropped, and the dropped ones, in the order of the batch.
        """
        for candidate in batch:
            self._normalize(candidate)
        kept = list(enumerate(batch))
        verdicts: dict[int, Verdict] = {}
        for stage in self._stages:
            found = stage([candidate for _, candidate in kept])
            verdicts |= {number: verdict for (number, _), verdict in zip(kept, found, strict=True) if verdict}
            kept = [entry for entry in kept if entry[0] not in verdicts]
        dropped = [(batch[number], verdicts[number]) for number in sorted(verdicts)]
        return [candidate for _, candidate in kept], dropped

    def _normalize(self, candidate: Candidate) -> None:
        texts = []
        for text in candidate.document.texts:
            normalized, changes = normalize(text, self._normalization)
            texts.append(normalized)
            for name, (times, removed_characters) in changes.items():
                candidate.change(f"normalization.{name}", times, removed_characters)
        candidate.document.texts = texts

    def _judge(self, batch: Sequence[Candidate]) -> Sequence[Verdict | None]:
        if not batch:
            return []
        found = judge_texts((candidate.document.text for candidate in batch), self._settings.rules)
        return [_empty(candidate.document) or verdict for candidate, verdict in zip(batch, found, strict=True)]

    def _search_blocklists(self, batch: Sequence[Candidate]) -> Sequence[Verdict | None]:
        min_hits = self._settings.rules["blocklists"].values["min_hits"]
        verdicts = []
        for candidate in batch:
            decision = self._settings.blocklists.decide("\n".join(candidate.document.texts), min_hits)
            verdicts.append(decision.verdict)
            candidate.document.category = decision.category or candidate.document.category
            candidate.tags = decision.tags
            for tag in decision.tags:
                candidate.change(f"tag.{tag}", 1)
        return verdicts

    def _mask(self, batch: Sequence[Candidate]) -> Sequence[Verdict | None]:
        for candidate in batch:
            texts = []
            for text in candidate.document.texts:
                masked, changes = mask(text, self._personal_data)
                texts.append(masked)
                for kind, (times, removed_characters) in changes.items():
                    candidate.change(f"mask.{kind}", times, removed_characters)
            candidate.document.texts = texts
        return [None] * len(batch)

    def _decontaminate(self, batch: Sequence[Candidate]) -> Sequence[Verdict | None]:
        before = [candidate.document.length_characters for candidate in batch]
        outcomes = self._decontamination.apply([candidate.document for candidate in batch])
        for candidate, outcome, length in zip(batch, outcomes, before, strict=True):
            candidate.hits = outcome.records
            if outcome.cuts:
                candidate.change("cut.decontamination", outcome.cuts, length - candidate.document.length_characters)
        return [
            outcome.verdict or _empty(candidate.document) for candidate, outcome in zip(batch, outcomes, strict=True)
        ]


def judge_lengths(documents: Sequence[Document], rules: RuleSettings) -> list[Verdict | None]:
    """Judges documents again out of which something was cut: nothing may be left, or too little."""
    lengths = RuleSettings(rules.preset, {name: replace(rules[name], on=name == "length") for name in rules.rules})
    is_on = rules["length"].on and bool(documents)
    found = judge_texts((document.text for document in documents), lengths) if is_on else [None] * len(documents)
    return [_empty(document) or verdict for document, verdict in zip(documents, found, strict=True)]


def _empty(document: Document) -> Verdict | None:
    """The verdict about a document of which preparation could not use what is left."""
    needed = document.texts if document.is_conversation else document.texts[1:]
    return None if all(map(str.strip, needed)) else Verdict("empty", 0, "min_characters 1")
