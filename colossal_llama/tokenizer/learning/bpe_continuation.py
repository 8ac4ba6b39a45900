"""Learns pieces by continuing a tokenizer's own BPE: the most frequent pair of neighbouring source tokens, again and again.

A vocabulary that is learned afresh and then appended holds pieces that the source's merges never
build, and so needs bridges. Here each word is first encoded by the source; every source token
becomes one private character; the `tokenizers` library's BPE trainer learns merges over those. Each
learned piece is a merge of two symbols that exist before it, in the order of frequency, which is
the very order in which init_tokenizer.py ranks new merges.

    text       深度学习 深度          source tokens   深 度 学 习 | 深 度
    trainer    sees  abcd ab        learns          a+b, ab+cd …   pieces  深度, 深度学习
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import regex
from tokenizers import Tokenizer, models, trainers

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.token_bytes import SPACE_MARK, byte_level_alphabet, is_byte_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FIRST_PRIVATE = 0x10000  # token 0's character; the BPE trainer takes any code point as a symbol
_WITHOUT_SPACES = "一あアกກកကཀ"
"""A letter of each script that is written without spaces: Han, Hiragana, Katakana, Thai, Lao,
Khmer, Myanmar, Tibetan."""
_BATCH_WORDS = 20_000


@dataclass(frozen=True)
class Limits:
    """What a piece may be.

    Attributes:
        pieces: how many at most.
        minimum_frequency: a pair or character seen fewer times is not taken.
        length_characters: the longest piece.
        blocked: no piece contains one of these strings.
    """

    pieces: int
    minimum_frequency: int
    length_characters: int
    blocked: frozenset[str] = frozenset()


def word_pattern(scripts: Iterable[str]) -> regex.Pattern:
    """What counts as a word of the given Unicode scripts (`Han`, `Cyrillic` …; `any` means letters of all).

    A word takes the space before it along, as LLaMA's own pieces do, unless the scripts are written
    without spaces.

    Raises:
        ValueError: there is no script of such a name.
    """
    scripts = list(scripts)
    if "any" in scripts:
        return regex.compile(r" ?[\p{L}\p{M}]+")
    for script in scripts:
        try:
            regex.compile(rf"\p{{Script={script}}}")
        except regex.error:
            raise ValueError(f"{script} is no Unicode script") from None
    letters = "".join(rf"\p{{Script={script}}}" for script in scripts)
    space = "" if all(regex.search(rf"\p{{Script={script}}}", _WITHOUT_SPACES) for script in scripts) else " ?"
    return regex.compile(rf"{space}[{letters}][{letters}\p{{M}}]*")


def count_words(texts: Iterable[str], pattern: regex.Pattern) -> Counter[str]:
    """How often each word occurs."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(pattern.findall(text))
    return words


def learn_pieces(words: Mapping[str, int], tokenizer: "PreTrainedTokenizerFast", limits: Limits) -> list[str]:
    """Pieces that the source lacks, those that save the most tokens first.

    A merge saves one token each time it is applied, a character that the source cuts into n bytes
    saves n - 1. A merge is never applied more often than the ones it builds on, so that this order
    puts every piece behind its parts.

    Args:
        words: word → how often it occurs.
        tokenizer: the source, of the LLaMA-2 or the LLaMA-3 kind.
        limits: see `Limits`.
    """
    symbols = _Symbols(tokenizer)
    rows: Counter[str] = Counter()
    for word, row in zip(words, symbols.encode(list(words)), strict=True):
        rows[row] += words[word]
    savings: dict[str, int] = {}
    for symbol, number in _symbol_counts(rows).items():
        if symbols.is_new_character(symbol) and number >= limits.minimum_frequency:
            character = symbols.text_of(symbol)
            savings[character] = number * (len(character.encode()) - 1)
    for merged, number in _train(rows, limits).items():
        if text := symbols.text_of(merged):
            savings.setdefault(text, number)
    # Stable: characters and earlier merges before equals.
    best_first = sorted(savings, key=savings.__getitem__, reverse=True)
    return list(islice((piece for piece in best_first if _is_allowed(piece, limits)), limits.pieces))


def _is_allowed(piece: str, limits: Limits) -> bool:
    return len(piece) <= limits.length_characters and not any(blocked in piece for blocked in limits.blocked)


def _symbol_counts(rows: Mapping[str, int]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for row, number in rows.items():
        for symbol in row:
            counts[symbol] += number
    return counts


def _train(rows: Mapping[str, int], limits: Limits) -> dict[str, int]:
    """Trains BPE on rows of symbols (row → how often it occurs).

    Returns:
        merged symbols → how often that merge is applied to the rows, in the order of training. More
            than asked for, as some
        will be left out.
    """
    alphabet = {symbol for row in rows for symbol in row}
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 2 * limits.pieces,
        min_frequency=limits.minimum_frequency,
        max_token_length=limits.length_characters,
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE())
    bpe.train_from_iterator((row for row, number in rows.items() for _ in range(number)), trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]

    applied = dict.fromkeys(("".join(pair) for pair in merges), 0)
    for encoding, number in zip(bpe.encode_batch(list(rows)), rows.values(), strict=True):
        for token in encoding.tokens:
            if token in applied:
                applied[token] += number
    for left, right in reversed(merges):  # what is part of a longer piece was merged, too
        for part in (left, right):
            if part in applied:
                applied[part] += applied[left + right]
    return applied


class _Symbols:
    """Source tokens as private characters.

    A character that a sentencepiece vocabulary lacks, and cuts into byte tokens, is one symbol of
    its own: the expansion makes it a piece. A byte-level vocabulary has all bytes; its symbols may
    be parts of characters.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._encoder = TextEncoder(tokenizer)
        self._tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self._byte_level = is_byte_level(self._encoder.definition())
        self._byte_of = byte_level_alphabet()
        self._known_characters = {token for token in self._tokens if len(token) == 1}
        self._new_characters: dict[str, str] = {}  # symbol → character
        self._new_symbols: dict[str, str] = {}  # character → symbol

    def encode(self, words: list[str]) -> Iterator[str]:
        """Each word as a string of symbols."""
        for start in range(0, len(words), _BATCH_WORDS):
            batch = words[start : start + _BATCH_WORDS]
            parts = [self._parts(word) for word in batch]
            known = [part for row in parts for part, is_known in row if is_known]
            ids = iter(self._encoder.encode_continuation(known))
            for row in parts:
                yield "".join(
                    "".join(chr(_FIRST_PRIVATE + token_id) for token_id in next(ids))
                    if is_known
                    else self._symbol_of(part)
                    for part, is_known in row
                )

    def is_new_character(self, symbol: str) -> bool:
        """Whether the symbol stands for a character that the source lacks."""
        return symbol in self._new_characters

    def text_of(self, symbols: str) -> str:
        """The text that symbols stand for; empty if they end inside of a character."""
        content = b"".join(self._bytes_of(symbol) for symbol in symbols)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return ""

    def _parts(self, word: str) -> list[tuple[str, bool]]:
        """The word cut at characters that the source lacks: (part, whether it is known)."""
        if self._byte_level:
            return [(word, True)]
        parts: list[tuple[str, bool]] = []
        for character in word:
            is_known = character == " " or character in self._known_characters
            if is_known and parts and parts[-1][1]:
                parts[-1] = (parts[-1][0] + character, True)
            else:
                parts.append((character, is_known))
        return parts

    def _symbol_of(self, character: str) -> str:
        if character not in self._new_symbols:
            symbol = chr(_FIRST_PRIVATE + len(self._tokens) + len(self._new_symbols))
            self._new_symbols[character] = symbol
            self._new_characters[symbol] = character
        return self._new_symbols[character]

    def _bytes_of(self, symbol: str) -> bytes:
        if symbol in self._new_characters:
            return self._new_characters[symbol].encode()
        token = self._tokens[ord(symbol) - _FIRST_PRIVATE]
        if self._byte_level:
            return bytes(self._byte_of[character] for character in token)
        return token.replace(SPACE_MARK, " ").encode()
