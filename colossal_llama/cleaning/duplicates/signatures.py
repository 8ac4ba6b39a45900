"""Signatures of a chunk's documents: what the search for duplicates needs of each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from colossal_llama.cleaning import hash_runs
from colossal_llama.cleaning.document import Document
from colossal_llama.cleaning.duplicates import exact, near, paragraphs
from colossal_llama.cleaning.duplicates.near import NearDuplicateSettings
from colossal_llama.cleaning.rule_settings import RuleSettings

EXACT, PARAGRAPHS, NEAR = "exact_duplicates", "duplicate_paragraphs", "near_duplicates"
"""Names of the rules, and of the directories of their signatures."""


@dataclass(frozen=True)
class DuplicateSettings:
    """Settings of the search for duplicates.

    Attributes:
        exact: documents with the text of an earlier one are dropped.
        min_paragraph_bytes: shortest paragraph that is cut where an earlier document has it;
            None for none.
        near: of near duplicates; None where they stay.
    """

    exact: bool
    min_paragraph_bytes: int | None
    near: NearDuplicateSettings | None

    @classmethod
    def of_rules(cls, rules: RuleSettings) -> "DuplicateSettings":
        """Takes the settings from the rules in effect."""
        paragraph_rule, near_rule = rules[PARAGRAPHS], rules[NEAR]
        return cls(
            exact=rules[EXACT].on,
            min_paragraph_bytes=max(paragraph_rule.values["min_bytes"], 1) if paragraph_rule.on else None,
            near=NearDuplicateSettings(**near_rule.values) if near_rule.on else None,
        )

    @property
    def are_any_on(self) -> bool:
        """True where duplicates of some kind are searched."""
        return self.exact or self.near is not None or self.min_paragraph_bytes is not None


@dataclass
class DuplicateSignatures:
    """Signatures of a chunk, batch by batch; `finish` writes them.

    Attributes:
        directory: of the signatures of all chunks.
        chunk: number of the chunk.
        settings: which signatures are needed.
    """

    directory: Path
    chunk: int
    settings: DuplicateSettings
    _count: int = 0
    _texts: list[np.ndarray] = field(default_factory=list)
    _paragraphs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    _bands: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    def add(self, documents: Sequence[Document]) -> None:
        """Notes the documents of a batch, in the order of the chunk."""
        texts = [document.text for document in documents]
        if self.settings.exact:
            self._texts.append(hash_runs.hash_texts(texts))
        if self.settings.min_paragraph_bytes is not None:
            to_cut = [() if document.is_conversation else document.texts for document in documents]
            hashes, positions = paragraphs.paragraph_hashes(to_cut, self.settings.min_paragraph_bytes)
            self._paragraphs.append((hashes, positions + self._count))
        if self.settings.near is not None:
            bands, positions = near.band_signatures(texts, self.settings.near)
            self._bands.append((bands, positions + self._count))
        self._count += len(documents)

    def finish(self) -> None:
        """Writes the sorted runs of the chunk."""
        if self._texts:
            exact.write_signatures(self.directory / EXACT, self.chunk, np.concatenate(self._texts))
        if self._paragraphs:
            hashes, positions = map(np.concatenate, zip(*self._paragraphs, strict=True))
            paragraphs.write_signatures(self.directory / PARAGRAPHS, self.chunk, hashes, positions)
        if self._bands:
            bands, positions = map(np.concatenate, zip(*self._bands, strict=True))
            near.write_signatures(self.directory / NEAR, self.chunk, bands, positions)
