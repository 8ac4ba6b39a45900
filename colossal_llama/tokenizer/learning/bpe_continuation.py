"""Learns new pieces by continuing the BPE training of a tokenizer on new text.

BPE training merges the most frequent pair of adjacent symbols, again and again. A vocabulary that
is trained from scratch and then appended holds pieces that the source's merges never build, and so
needs intermediate pieces. Here the source first encodes each word, and every source token becomes
one private character. The `tokenizers` library's BPE trainer learns merges over these. Each learned
piece is a merge of two earlier symbols, in the order of frequency, by which init_tokenizer.py ranks
new merges, too.

    text       深度学习 深度      source tokens   深 度 学 习 | 深 度
    trainer    sees  abcd ab      learns          a+b, ab+cd …   pieces  深度, 深度学习
"""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, pairwise
from math import ceil
from typing import TYPE_CHECKING

import regex
from tokenizers import Tokenizer, models, trainers

from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.pretokenizer import words_of
from colossal_llama.tokenizer.script_names import named_scripts, scripts_of_text
from colossal_llama.tokenizer.token_bytes import SPACE_MARK, byte_level_alphabet, is_byte_level

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FIRST_PRIVATE = 0x10000  # token 0's character; the BPE trainer takes any code point as a symbol
# A letter of each script that is written without spaces: Han, Hiragana, Katakana, Thai, Lao, Khmer,
# Myanmar, Tibetan.
_WITHOUT_SPACES = "一あアกກកကཀ"
_LETTER_OR_MARK = r"[\p{L}\p{M}]"
_JOINERS = "\u200c\u200d"  # they show inside a word how letters join: Persian, Indic scripts
_DANDAS = "\u0964\u0965"
_MARK = regex.compile(rf"[\p{{M}}{_JOINERS}]")
_MARK_AT_CUT = regex.compile(rf"\|[\p{{M}}{_JOINERS}]|[\p{{M}}{_JOINERS}]\|\p{{L}}")
_BEGINS_INSIDE = regex.compile(rf"[\p{{M}}{_JOINERS}]+[^\p{{M}}{_JOINERS}]")
_GRAPHEME = regex.compile(r"\X")
_BATCH_WORDS = 20_000
_MORE_SYMBOLS = 1.5  # than the mean: letters with several marks
_LEAST_FREQUENCY, _MOST_FREQUENCY = 2, 20
_CHARACTERS_PER_OCCURRENCE = 50_000  # so that a text of a million characters has the most


@dataclass(frozen=True)
class LearningLimits:
    """Limits of the pieces to learn.

    Attributes:
        max_pieces: number of pieces, at most.
        min_frequency: the least frequency of a pair or a character.
        max_characters: length of a piece, at most: a letter counts as one with its marks
            (grapheme clusters, UAX #29).
        blocked: strings that no piece may contain.
    """

    max_pieces: int
    min_frequency: int
    max_characters: int
    blocked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LearnedPieces:
    """Pieces that the source lacks.

    Attributes:
        saved_tokens: piece → tokens that it saves in the text learned from; the most come first.
        left_out: reason → number of pieces of the limits' frequency that were left out.
        cut_words: words that the source's pre-tokenizer cuts at a mark.
    """

    saved_tokens: Mapping[str, int]
    left_out: Mapping[str, int]
    cut_words: "CutWords"


@dataclass(frozen=True)
class CutWords:
    """Words that the source's pre-tokenizer cuts at a combining mark: they cannot be one token.

    Attributes:
        different: number of different ones.
        frequent: the most frequent of those that have the limits' frequency.
        occurrences: number of all in the text.
        share: of the occurrences of all words.
        scripts: of their letters, the most frequent first.
    """

    different: int
    frequent: tuple[str, ...]
    occurrences: int
    share: float
    scripts: tuple[str, ...]


def word_pattern(scripts: Iterable[str]) -> regex.Pattern:
    """Compiles the pattern of a word of the given Unicode scripts.

    A word includes the space before it, as LLaMA's own pieces do, unless the scripts are written
    without spaces. A letter or mark that several scripts share (ー of Hiragana and Katakana, the
    Arabic tatweel) belongs to each of them: `Script_Extensions` of Unicode (UAX #24). Joiners
    (U+200C, U+200D) belong to the word around them. A danda, which ends sentences in many Indic
    scripts, is a word of its own.

    Args:
        scripts: names or codes (`script_names`); `any` means letters of all scripts.

    Raises:
        ValueError: a name is not that of a script, or there is none.
    """
    scripts = list(scripts)
    if "any" in scripts:
        return regex.compile(" ?" + _joined(_LETTER_OR_MARK, _LETTER_OR_MARK))
    scripts = named_scripts(scripts)
    own = "".join(rf"\p{{Script={script}}}" for script in scripts)
    shared = "".join(rf"\p{{scx={script}}}" for script in scripts)
    letter = rf"[{own}[[{shared}]&&[\p{{L}}\p{{M}}]]]"
    space = "" if all(regex.search(rf"\p{{Script={script}}}", _WITHOUT_SPACES) for script in scripts) else " ?"
    word = space + _joined(letter, rf"[{letter}\p{{M}}]")
    has_danda = regex.match(rf"[{shared}]", _DANDAS) is not None
    return regex.compile(rf"{word}|[{_DANDAS}]+" if has_danda else word, regex.V1)


def _joined(first: str, following: str) -> str:
    """Returns the expression of a word: a first letter, following ones, joiners between them."""
    return rf"{first}{following}*(?:[{_JOINERS}]+{following}+)*"


def count_words(texts: Iterable[str], pattern: regex.Pattern) -> Counter[str]:
    """Counts the frequency of each word."""
    words: Counter[str] = Counter()
    for text in texts:
        words.update(pattern.findall(text))
    return words


def default_min_frequency(words: Mapping[str, int]) -> int:
    """Returns how often a piece must occur in a text: 20 times, in a small one twice.

    A small text has few pieces that occur 20 times. There `vocabulary_size_curve` decides by their
    savings, of which one occurrence is taken off.
    """
    characters = sum(len(word) * frequency for word, frequency in words.items())
    return max(_LEAST_FREQUENCY, min(_MOST_FREQUENCY, characters // _CHARACTERS_PER_OCCURRENCE))


def learn_pieces(
    words: Mapping[str, int], tokenizer: "PreTrainedTokenizerFast", limits: LearningLimits
) -> LearnedPieces:
    """Learns pieces that the source lacks; those that save the most tokens come first.

    A merge saves one token each time it is applied, a character that the source splits into n bytes
    saves n - 1. A merge is never applied more often than the ones it builds on, so that this order
    puts every piece after its parts.

    Args:
        words: word → its frequency.
        tokenizer: the source tokenizer (LLaMA-2 or LLaMA-3).
        limits: limits of the pieces.
    """
    symbols = _Symbols(tokenizer)
    parts, cut = symbols.split_at_pre_tokens(words)
    sequences: Counter[str] = Counter()
    for part, sequence in zip(parts, symbols.encode(list(parts)), strict=True):
        sequences[sequence] += parts[part]
    saved_tokens: dict[str, int] = {}
    for symbol, frequency in _symbol_frequencies(sequences).items():
        if frequency >= limits.min_frequency and (saved := symbols.source_tokens_of(symbol) - 1):
            saved_tokens[symbols.text_of(symbol)] = frequency * saved
    per_character = _symbols_per_character(parts, sequences)
    longest = ceil(limits.max_characters * (_MORE_SYMBOLS * per_character if per_character > 1 else 1))
    for merged, frequency in _train(sequences, limits, longest).items():
        if text := symbols.text_of(merged):
            saved_tokens.setdefault(text, frequency)
    # Stable: characters and earlier merges before equals.
    best_first = sorted(saved_tokens, key=saved_tokens.__getitem__, reverse=True)
    beginnings = _beginnings_with_mark(parts)
    reasons = ((piece, _why_left_out(piece, limits, symbols, beginnings)) for piece in best_first)
    left_out: Counter[str] = Counter()
    kept: dict[str, int] = {}
    for piece, reason in reasons:
        if len(kept) == limits.max_pieces:
            break
        if reason is None:
            kept[piece] = saved_tokens[piece]
        else:
            left_out[reason] += 1
    return LearnedPieces(kept, left_out, _cut_words(words, cut, limits))


def _why_left_out(piece: str, limits: LearningLimits, symbols: "_Symbols", beginnings: Collection[str]) -> str | None:
    """Returns the reason for which a piece is not kept, or None.

    A piece that begins with a mark and goes on into the next letter is no part of a writing system.
    Without these, as many rows save as much (Hindi, Thai, Burmese: 1 % of the tokens more or less).
    The pre-tokenizer may leave nothing better: Burmese in LLaMA-3.
    """
    if any(blocked in piece for blocked in limits.blocked):
        return "with a blocked string"
    if len(_GRAPHEME.findall(piece)) > limits.max_characters:
        return "longer than --max_piece_length"
    if _BEGINS_INSIDE.match(piece) and piece not in beginnings:
        return "from a mark into the next letter"
    return "in the source" if symbols.is_piece(piece) else None


def _beginnings_with_mark(words: Iterable[str]) -> set[str]:
    """Returns the beginnings of all words that begin with a mark."""
    return {word[:end] for word in words if _MARK.match(word) for end in range(1, len(word) + 1)}


def _symbols_per_character(words: Iterable[str], sequences: Iterable[str]) -> float:
    """Returns the mean over some words; a byte-level vocabulary may take six for a Hindi letter."""
    characters = sum(len(_GRAPHEME.findall(word)) for word in islice(words, _BATCH_WORDS))
    return sum(map(len, islice(sequences, _BATCH_WORDS))) / max(1, characters)


def _cut_words(words: Mapping[str, int], cut: Collection[str], limits: LearningLimits) -> CutWords:
    occurrences = {word: words[word] for word in cut}
    scripts: Counter[str] = Counter()
    for word, frequency in occurrences.items():
        scripts.update(dict.fromkeys(scripts_of_text(word), frequency))
    frequent = [word for word in occurrences if occurrences[word] >= limits.min_frequency]
    return CutWords(
        different=len(occurrences),
        frequent=tuple(sorted(frequent, key=occurrences.__getitem__, reverse=True)),
        occurrences=sum(occurrences.values()),
        share=sum(occurrences.values()) / max(1, sum(words.values())),
        scripts=tuple(script for script, _ in scripts.most_common()),
    )


def _symbol_frequencies(sequences: Mapping[str, int]) -> Counter[str]:
    frequencies: Counter[str] = Counter()
    for sequence, frequency in sequences.items():
        for symbol in sequence:
            frequencies[symbol] += frequency
    return frequencies


def _train(sequences: Mapping[str, int], limits: LearningLimits, max_symbols: int) -> dict[str, int]:
    """Trains BPE on sequences of symbols (sequence → its frequency).

    Returns:
        Merged symbols → how often that merge is applied to the sequences, in the order of training.
        There are more than `limits.max_pieces`, as some will be left out.
    """
    alphabet = {symbol for sequence in sequences for symbol in sequence}
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 2 * limits.max_pieces,
        min_frequency=limits.min_frequency,
        max_token_length=max_symbols + 1,  # it counts no pair that would be as long as its limit
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE())
    repeated = (sequence for sequence, frequency in sequences.items() for _ in range(frequency))
    bpe.train_from_iterator(repeated, trainer)
    merges = json.loads(bpe.to_str())["model"]["merges"]

    applied = dict.fromkeys(("".join(pair) for pair in merges), 0)
    for encoding, frequency in zip(bpe.encode_batch(list(sequences)), sequences.values(), strict=True):
        for token in encoding.tokens:
            if token in applied:
                applied[token] += frequency
    for left, right in reversed(merges):  # the parts of a longer piece were merged, too
        for part in (left, right):
            if part in applied:
                applied[part] += applied[left + right]
    return applied


class _Symbols:
    """Encodes words as strings of private characters, one for each source token.

    A character that a sentencepiece vocabulary lacks, and splits into byte tokens, gets a symbol of
    its own: the expansion makes it a piece. So do characters over which the tokens of a byte-level
    vocabulary are spread. Otherwise merges within a character would use up what could be learned:
    of a Burmese text 8 pieces were left, and 64 could have been.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._encoder = TextEncoder(tokenizer)
        size = 1 + max(tokenizer.get_vocab().values())  # more than its tokens, where ids are unused
        self._tokens = [token or "" for token in tokenizer.convert_ids_to_tokens(list(range(size)))]
        self._byte_level = is_byte_level(self._encoder.definition())
        self._byte_of = byte_level_alphabet()
        self._backend = tokenizer.backend_tokenizer
        texts = list(map(self._text_of_token, self._tokens))
        self._texts = set(texts)
        self._known_characters = {token for token in self._tokens if len(token) == 1}
        self._made_texts: dict[str, tuple[str, int]] = {}  # symbol → its text, number of source tokens
        self._made_symbols: dict[str, str] = {}  # text → symbol
        self._parts_of_characters = {chr(_FIRST_PRIVATE + number) for number, text in enumerate(texts) if not text}

    def split_at_pre_tokens(self, words: Mapping[str, int]) -> tuple[Mapping[str, int], list[str]]:
        """Splits words where a byte-level tokenizer does: LLaMA-3 merges nothing across a mark.

        Returns:
            Part → its frequency, in the tokenizer's normal form; the words that are cut at a mark.
        """
        if not self._byte_level:
            return words, []
        parts: Counter[str] = Counter()
        cut = []
        for word, frequency in words.items():
            found = words_of(self._backend, word)
            for part in found:
                parts[part] += frequency
            if any(_MARK_AT_CUT.search(f"{before[-1]}|{after[0]}") for before, after in pairwise(found)):
                cut.append(word)
        return parts, cut

    def encode(self, words: list[str]) -> Iterator[str]:
        """Yields each word as a string of symbols."""
        for start in range(0, len(words), _BATCH_WORDS):
            batch = words[start : start + _BATCH_WORDS]
            parts = [self._parts(word) for word in batch]
            known = [part for word_parts in parts for part, is_known in word_parts if is_known]
            ids = iter(self._encoder.encode_continuation(known))
            for word_parts in parts:
                yield "".join(
                    self._whole_characters("".join(chr(_FIRST_PRIVATE + token_id) for token_id in next(ids)))
                    if is_known
                    else self._symbol_of(part, len(part.encode()))
                    for part, is_known in word_parts
                )

    def _whole_characters(self, sequence: str) -> str:
        """Replaces symbols that end or begin inside a character by one for the characters."""
        if self._parts_of_characters.isdisjoint(sequence):
            return sequence
        whole, held = [], ""
        for symbol in sequence:
            held += symbol
            if len(held) == 1 and symbol not in self._parts_of_characters:
                whole.append(held)
            elif text := self.text_of(held):
                whole.append(self._symbol_of(text, len(held)))
            else:
                continue
            held = ""
        return "".join(whole) + held

    def is_piece(self, text: str) -> bool:
        """True when the source has a piece of this text, if only as a whole word (LLaMA-3)."""
        return text in self._texts

    def source_tokens_of(self, symbol: str) -> int:
        """Returns the number of source tokens for which a symbol stands."""
        return self._made_texts[symbol][1] if symbol in self._made_texts else 1

    def text_of(self, symbols: str) -> str:
        """Returns the text that symbols stand for; empty if they end inside a character."""
        content = b"".join(self._bytes_of(symbol) for symbol in symbols)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return ""

    def _text_of_token(self, token: str) -> str:
        """Returns a token's text; empty if it begins or ends inside a character."""
        if not self._byte_level:
            return token.replace(SPACE_MARK, " ")
        try:
            return bytes(self._byte_of[character] for character in token).decode()
        except KeyError:  # an added token, written as it is
            return token
        except UnicodeDecodeError:
            return ""

    def _parts(self, word: str) -> list[tuple[str, bool]]:
        """Splits a word at characters that the source lacks: (part, true if the source has it)."""
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

    def _symbol_of(self, text: str, source_tokens: int) -> str:
        if text not in self._made_symbols:
            symbol = chr(_FIRST_PRIVATE + len(self._tokens) + len(self._made_symbols))
            self._made_symbols[text] = symbol
            self._made_texts[symbol] = text, source_tokens
        return self._made_symbols[text]

    def _bytes_of(self, symbol: str) -> bytes:
        if symbol in self._made_texts:
            return self._made_texts[symbol][0].encode()
        token = self._tokens[ord(symbol) - _FIRST_PRIVATE]
        if self._byte_level:
            return bytes(self._byte_of[character] for character in token)
        return token.replace(SPACE_MARK, " ").encode()
