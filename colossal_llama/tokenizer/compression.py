"""Counts a corpus's tokens, characters split into byte tokens, and failed round trips."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

from colossal_llama.tokenizer.corpus import CorpusText
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.token_bytes import SPACE_MARK, token_bytes

if TYPE_CHECKING:
    from tqdm import tqdm
    from transformers import PreTrainedTokenizerFast

_BATCH_DOCUMENTS = 256


@dataclass
class TokenizationCounts:
    """Totals over documents.

    Attributes:
        documents: number of documents.
        characters: number of characters.
        tokens: number of tokens, without BOS and EOS.
        characters_in_bytes: characters that are encoded as several tokens.
        round_trip_failures: documents whose ids decode to another text.
    """

    documents: int = 0
    characters: int = 0
    tokens: int = 0
    characters_in_bytes: int = 0
    round_trip_failures: int = 0

    def add(self, other: "TokenizationCounts") -> None:
        """Adds another total to this one."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def tokens_per_character(self) -> float:
        """Compression: a lower value is better."""
        return self.tokens / max(1, self.characters)

    @property
    def tokens_per_document(self) -> float:
        """Mean length."""
        return self.tokens / max(1, self.documents)


class DocumentCounter:
    """Counts documents for one tokenizer (LLaMA-2 or LLaMA-3)."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._encoder = TextEncoder(tokenizer)
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._token_lengths_bytes = _token_lengths_bytes(self._encoder.definition())

    def count(self, texts: Sequence[str]) -> Iterator[TokenizationCounts]:
        """Yields the counts of each document."""
        ids = self._encoder.encode_beginning(texts)
        decoded = self._backend.decode_batch(ids, skip_special_tokens=False)
        for text, text_ids, back in zip(texts, ids, decoded, strict=True):
            in_bytes = self._characters_in_bytes(text, text_ids)
            yield TokenizationCounts(1, len(text), len(text_ids), in_bytes, int(back != text))

    def _characters_in_bytes(self, text: str, ids: Sequence[int]) -> int:
        """Counts the characters with a token's end inside their UTF-8 bytes.

        text    a 螃            bytes  61 | e8 9e 83
        tokens  a <E8><9E><83>  ends   1    2  3  4      ends 2 and 3 are inside 螃: 1 character
        """
        content = np.frombuffer(text.replace(SPACE_MARK, " ").encode(), dtype=np.uint8)
        ends = np.cumsum(self._token_lengths_bytes[ids])
        if not len(ends):
            return 0
        ends -= ends[-1] - len(content)  # LLaMA-2's space before the first word is not in the text
        continues = (content & 0xC0) == 0x80
        inside = ends[(ends > 0) & (ends < len(content))]
        inside = inside[continues[inside]]
        return len(np.unique(np.cumsum(~continues)[inside]))


def count_corpus(
    texts: Iterable[CorpusText], tokenizers: Mapping[str, "PreTrainedTokenizerFast"], progress_bar: "tqdm"
) -> dict[str, dict[str, TokenizationCounts]]:
    """Counts the same documents for every tokenizer in one pass.

    Args:
        texts: the documents.
        tokenizers: name → tokenizer.
        progress_bar: is advanced by the number of characters.

    Returns:
        Tokenizer's name → category → its totals.
    """
    counters = {name: DocumentCounter(tokenizer) for name, tokenizer in tokenizers.items()}
    totals: dict[str, dict[str, TokenizationCounts]] = {name: defaultdict(TokenizationCounts) for name in tokenizers}
    documents = iter(texts)
    while batch := list(islice(documents, _BATCH_DOCUMENTS)):
        contents = [document.text for document in batch]
        for name, counter in counters.items():
            for document, counts in zip(batch, counter.count(contents), strict=True):
                totals[name][document.category].add(counts)
        progress_bar.update(sum(map(len, contents)))
    return {name: dict(categories) for name, categories in totals.items()}


def _token_lengths_bytes(definition: dict) -> np.ndarray:
    """Returns each token's length in bytes of text: int64 [ids]."""
    ids = [*definition["model"]["vocab"].values(), *(token["id"] for token in definition["added_tokens"])]
    return np.array([len(content) for content in token_bytes(definition, max(ids) + 1)], dtype=np.int64)
