"""Splits documents that are longer than a row, at a paragraph, line or sentence where possible."""

from collections.abc import Callable

import numpy as np

# Scores of cut positions: the higher, the better. INSIDE_CHARACTER is only taken when a whole row
# has nothing else.
INSIDE_CHARACTER, ANYWHERE, WORD, SENTENCE, LINE, PARAGRAPH = range(6)
SEARCHED_SHARE = 16  # the last sixteenth of a row is searched: the row stays at least 94 % full
# The end of the searched range is skipped, but for the limit itself: a gap of less than 64 of 4,096
# tokens is too short for nearly every document and stays empty (fill 0.9992 instead of 0.9976 on
# the real corpus with LLaMA-2).
UNFILLABLE_SHARE = 64

_SENTENCE_ENDS = ("。", "！", "？", "；", "…")
_ASCII_SENTENCE_ENDS = (b".", b"!", b"?", b'."', b'!"', b'?"', b".)", b":", b";")


class CutScores:
    """Scores of the positions between tokens, as positions to cut a document at.

    What a score depends on is computed once, from the bytes of every token of the vocabulary.
    Scoring the positions of a text then takes a few array lookups.
    """

    def __init__(self, token_bytes: list[bytes]):
        """Computes the properties of every token.

        Args:
            token_bytes: for every id the bytes that it decodes to; empty for control tokens.
        """
        wide_ends = tuple(character.encode() for character in _SENTENCE_ENDS)
        first = np.fromiter((content[0] if content else 0 for content in token_bytes), np.uint8, len(token_bytes))
        last = np.fromiter((content[-1] if content else 0 for content in token_bytes), np.uint8, len(token_bytes))

        def flags(candidates: np.ndarray, value: Callable[[bytes], int]) -> np.ndarray:
            """Evaluates candidates only: seven properties of each of 128,000 tokens took 0.14 s."""
            found = np.zeros(len(token_bytes), np.uint8)
            for token_id in np.flatnonzero(candidates).tolist():
                found[token_id] = value(token_bytes[token_id])
            return found

        ends_line, wide_last = last == ord("\n"), np.isin(last, [end[-1] for end in wide_ends])
        ascii_last = np.isin(last, [end[-1] for end in _ASCII_SENTENCE_ENDS])
        self._newlines_at_end = flags(ends_line, lambda content: min(len(content) - len(content.rstrip(b"\n")), 2))
        self._only_newlines = flags(ends_line, lambda content: not content.strip(b"\n"))
        self._starts_with_newline = (first == ord("\n")).view(np.uint8)
        self._starts_with_space = np.isin(first, [ord(space) for space in " \n\t"]).view(np.uint8)
        self._inside_character = ((first >= 0x80) & (first < 0xC0)).view(np.uint8)
        self._wide_sentence_end = flags(wide_last, lambda content: content.endswith(wide_ends))
        self._ascii_sentence_end = flags(ascii_last, lambda content: content.endswith(_ASCII_SENTENCE_ENDS))

    def score(self, tokens: np.ndarray) -> np.ndarray:
        r"""Scores every position between two tokens; element i is the position before token i + 2.

            ids          a   .   \n  \n  B
            positions          0   1   2       0: SENTENCE, 2: PARAGRAPH

        Args:
            tokens: (n,) ids, n >= 2; the first two only give context.

        Returns:
            (n - 2,) uint8 scores.
        """
        before_last, last, following = tokens[:-2], tokens[1:-1], tokens[2:]
        score = np.full(len(following), ANYWHERE, np.uint8)
        score[self._starts_with_space[following] > 0] = WORD
        sentence = (self._ascii_sentence_end[last] & self._starts_with_space[following]) | self._wide_sentence_end[last]
        score[sentence > 0] = SENTENCE
        newlines = self._newlines_at_end[last]
        joined = newlines + self._only_newlines[last] * self._newlines_at_end[before_last]
        complete = self._starts_with_newline[following] == 0
        score[(newlines > 0) & complete] = LINE
        score[(joined > 1) & complete] = PARAGRAPH
        score[self._inside_character[following] > 0] = INSIDE_CHARACTER
        return score


def cut_positions(tokens: np.ndarray, max_length: int, scores: CutScores, first_cut_after: int = 0) -> list[int]:
    """Chooses where to cut a document so that every segment has 2 to `max_length` tokens.

    Near the limit the position of the highest score is taken, the last one among equals: after a
    paragraph, a line, a sentence, before a word, else between any two characters.

    Args:
        tokens: (n,) ids of the document.
        max_length: maximum length of a segment in tokens, at least 4.
        scores: of the tokenizer's vocabulary.
        first_cut_after: minimum length of the first segment, less one: it must reach into the
            target.

    Returns:
        The positions of the cuts, ascending, without 0 and n; empty if the document fits.
    """
    cuts, start = [], 0
    while len(tokens) - start > max_length:
        latest = min(start + max_length, len(tokens) - 2)
        earliest = max(latest - max_length // SEARCHED_SHARE, start + 2, first_cut_after + 1)
        score = scores.score(tokens[earliest - 2 : latest + 1])
        if not score.any():  # only INSIDE_CHARACTER: a boundary between characters, if any, lies further ahead
            earliest = max(start + 2, first_cut_after + 1)
            score = scores.score(tokens[earliest - 2 : latest + 1])
        unfillable = max_length // UNFILLABLE_SHARE
        if len(score) > unfillable + 1:
            score[-1 - unfillable : -1] = INSIDE_CHARACTER
        start = latest - int(np.argmax(score[::-1]))
        cuts.append(start)
    return cuts
