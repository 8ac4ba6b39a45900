"""Counts what a tokenizer makes of a corpus: tokens, characters cut into bytes, texts that do not come back."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from colossal_llama.tokenizer.corpus import Text
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.token_bytes import SPACE_MARK, token_bytes

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedTokenizerFast

_BATCH_DOCUMENTS = 256


@dataclass
class Counts:
    """Totals over documents.

    Attributes:
        documents, characters, tokens: how many there are; without BOS and EOS.
        characters_in_bytes: characters that no token holds whole, because they are encoded as several tokens.
        round_trip_failures: documents whose ids decode to another text.
    """

    documents: int = 0
    characters: int = 0
    tokens: int = 0
    characters_in_bytes: int = 0
    round_trip_failures: int = 0

    def add(self, other: "Counts") -> None:
        """Adds another total to this one."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def tokens_per_character(self) -> float:
        """Compression: lower is better."""
        return self.tokens / max(1, self.characters)

    @property
    def tokens_per_document(self) -> float:
        """Average length."""
        return self.tokens / max(1, self.documents)


class Measure:
    """Counts for one tokenizer, document by document."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        """`tokenizer`: of the LLaMA-2 or the LLaMA-3 kind."""
        self._encoder = TextEncoder(tokenizer)
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._token_bytes = _token_lengths_bytes(self._encoder.definition())

    def count(self, texts: Sequence[str]) -> Iterator[Counts]:
        """One `Counts` for each document."""
        ids = self._encoder.encode_beginning(texts)
        decoded = self._backend.decode_batch(ids, skip_special_tokens=False)
        for text, row, back in zip(texts, ids, decoded, strict=True):
            yield Counts(1, len(text), len(row), self._characters_in_bytes(text, row), int(back != text))

    def _characters_in_bytes(self, text: str, ids: Sequence[int]) -> int:
        """Characters with a token's end inside of their UTF-8 bytes.

        text        a 螃            bytes   61 | e8 9e 83
        tokens      a <E8><9E><83>  ends    1    2  3  4         ends 2 and 3 lie inside of 螃: one character
        """
        content = np.frombuffer(text.replace(SPACE_MARK, " ").encode(), dtype=np.uint8)
        ends = np.cumsum(self._token_bytes[ids])
        if not len(ends):
            return 0
        ends -= ends[-1] - len(content)  # LLaMA-2's space before the first word is no byte of the text
        continues = (content & 0xC0) == 0x80
        inside = ends[(ends > 0) & (ends < len(content))]
        inside = inside[continues[inside]]
        return len(np.unique(np.cumsum(~continues)[inside]))


def measure(
    texts: Iterable[Text], tokenizers: Mapping[str, "PreTrainedTokenizerFast"], progress_bar: "tqdm"
) -> dict[str, dict[str, Counts]]:
    """Counts every tokenizer over the same documents in one pass.

    Args:
        texts: the documents.
        tokenizers: name → tokenizer.
        progress_bar: is advanced by the number of characters.

    Returns:
        tokenizer's name → category → its totals.
    """
    measures = {name: Measure(tokenizer) for name, tokenizer in tokenizers.items()}
    totals: dict[str, dict[str, Counts]] = {name: defaultdict(Counts) for name in tokenizers}
    documents = iter(texts)
    while batch := list(islice(documents, _BATCH_DOCUMENTS)):
        contents = [document.text for document in batch]
        for name, one in measures.items():
            for document, counts in zip(batch, one.count(contents), strict=True):
                totals[name][document.category].add(counts)
        progress_bar.update(sum(map(len, contents)))
    return {name: dict(categories) for name, categories in totals.items()}


def _token_lengths_bytes(definition: dict) -> np.ndarray:
    """Length of each token in bytes of text, by id."""
    ids = [*definition["model"]["vocab"].values(), *(token["id"] for token in definition["added_tokens"])]
    return np.array([len(content) for content in token_bytes(definition, max(ids) + 1)], dtype=np.int64)
