"""Decisions of the merge about the documents of a block: what is dropped, what is cut out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.cleaning import boilerplate
from colossal_llama.cleaning.boilerplate import Boilerplate, cut_lines
from colossal_llama.cleaning.candidates import Candidate
from colossal_llama.cleaning.document import Verdict
from colossal_llama.cleaning.duplicates import exact, near, paragraphs
from colossal_llama.cleaning.duplicates.paragraphs import cut_paragraphs
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.signatures import BOILERPLATE, EXACT, NEAR, PARAGRAPHS, near_settings, signature_dir


@dataclass(frozen=True)
class Duplicate:
    """A document that is dropped for another one.

    Attributes:
        verdict: why.
        kept: number of the document that stays.
    """

    verdict: Verdict
    kept: int


@dataclass(frozen=True)
class BlockDecisions:
    """Decisions about the documents of a block, by position in it.

    Attributes:
        duplicates: documents that are dropped.
        paragraphs: hashes of the paragraphs that are cut.
        lines: hashes of the lines that are cut.
        min_characters: of the paragraphs that are compared.
        boilerplate: settings of the lines.
    """

    duplicates: Mapping[int, Duplicate]
    paragraphs: Mapping[int, frozenset[int]]
    lines: Mapping[int, np.ndarray]
    min_characters: int
    boilerplate: Boilerplate | None

    def cut(self, position: int, candidate: Candidate) -> bool:
        """Cuts out of a document what recurs; tells whether it has changed.

        Paragraphs go first: they were compared as they stood, with all of their lines.
        """
        hashes, lines = self.paragraphs.get(position), self.lines.get(position)
        if hashes is None and lines is None:
            return False
        document, before = candidate.document, candidate.document.texts
        texts = []
        for text in document.texts:
            if hashes is not None and text:
                cut = cut_paragraphs(text, hashes, self.min_characters)
                text = cut.text
                if cut.paragraphs:
                    candidate.change("cut.paragraphs", cut.paragraphs, cut.characters)
            if lines is not None and text and self.boilerplate is not None:
                rest, count = cut_lines(text, document.group, lines, self.boilerplate)
                if count:
                    candidate.change("cut.lines", count, len(text) - len(rest))
                text = rest
            texts.append(text)
        document.texts = texts
        return texts != before


@dataclass(frozen=True)
class Decisions:
    """Decisions of the merge, on disk.

    Attributes:
        work_dir: directory of the intermediates.
        rules: in effect.
    """

    work_dir: Path
    rules: RuleSettings

    def of_block(self, block: int) -> BlockDecisions:
        """Reads the decisions about a block."""
        directory, rules = signature_dir(self.work_dir), self.rules
        duplicates: dict[int, Duplicate] = {}
        if rules["exact_duplicates"].on:
            verdict = Verdict("exact_duplicates", 1.0, "min_similarity 1.0")
            found = exact.read_dropped(directory / EXACT, block)
            duplicates |= {position: Duplicate(verdict, kept) for position, kept in found.items()}
        if (settings := near_settings(rules)) is not None:
            limit = f"min_similarity {settings.min_similarity}"
            for position, (kept, similarity) in near.read_dropped(directory / NEAR, block).items():
                duplicates[position] = Duplicate(Verdict("near_duplicates", round(similarity, 6), limit), kept)
        rule = rules["duplicate_paragraphs"]
        recurring = Boilerplate.of_rules(rules)
        return BlockDecisions(
            duplicates,
            paragraphs.read_cuts(directory / PARAGRAPHS, block) if rule.on else {},
            {} if recurring is None else boilerplate.read_cuts(directory / BOILERPLATE, block),
            rule.values["min_characters"],
            recurring,
        )
