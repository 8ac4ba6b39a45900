"""Decisions of the merge about the documents of a block: what is dropped, what is cut out."""

from pathlib import Path

from colossal_llama.cleaning import boilerplate
from colossal_llama.cleaning.boilerplate import Boilerplate, cut_lines
from colossal_llama.cleaning.candidates import Candidate
from colossal_llama.cleaning.duplicates.decisions import ChunkDuplicates, Duplicate
from colossal_llama.cleaning.duplicates.signatures import DuplicateSettings
from colossal_llama.cleaning.rule_settings import RuleSettings
from colossal_llama.cleaning.signatures import BOILERPLATE, signature_dir


class BlockDecisions:
    """Decisions about the documents of a block, by position in it."""

    def __init__(self, work_dir: Path, rules: RuleSettings, block: int):
        """Reads the decisions.

        Args:
            work_dir: directory of the intermediates.
            rules: in effect.
            block: number of the block.
        """
        directory = signature_dir(work_dir)
        self._duplicates = ChunkDuplicates(directory, block, DuplicateSettings.of_rules(rules))
        self._boilerplate = Boilerplate.of_rules(rules)
        self._lines = (
            {}
            if self._boilerplate is None
            else boilerplate.read_cuts(directory / BOILERPLATE, block, self._boilerplate)
        )

    def duplicate(self, position: int) -> Duplicate | None:
        """Returns why a document is dropped as a duplicate; None where it stays."""
        return self._duplicates.duplicate(position)

    def cut(self, position: int, candidate: Candidate) -> bool:
        """Cuts out of a document what recurs; tells whether it has changed.

        Paragraphs go first: they were compared as they stood, with all of their lines.
        """
        count, characters = self._duplicates.cut_paragraphs(position, candidate.document)
        if count:
            candidate.change("cut.duplicate_paragraphs", count, characters)
        return self._cut_lines(position, candidate) or bool(count)

    def _cut_lines(self, position: int, candidate: Candidate) -> bool:
        document, hashes = candidate.document, self._lines.get(position)
        if hashes is None or self._boilerplate is None:
            return False
        found = [cut_lines(text, document.group, hashes, self._boilerplate) for text in document.texts]
        count, before = sum(lines for _, lines in found), document.length_characters
        if count:
            document.texts = [text for text, _ in found]
            candidate.change("cut.boilerplate", count, before - document.length_characters)
        return bool(count)
