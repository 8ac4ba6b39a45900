"""Samples a corpus: words to learn pieces from, and held-out text to measure compression on."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from colossal_llama.readers.content_size import total_bytes
from colossal_llama.readers.fields import FieldOptions
from colossal_llama.tokenizer.corpus import CorpusText, find_files, read_texts, split_into_blocks
from colossal_llama.tokenizer.learning.bpe_continuation import count_words, word_pattern
from colossal_llama.utils.console import progress_bar
from colossal_llama.utils.errors import UserError

HELD_OUT_BYTES = 2_000_000  # encoding it ten times for the curve takes seconds
HELD_OUT_SHARE = 1 / 20  # of a corpus that is smaller than twenty times that
HELD_OUT_BLOCKS = 10  # at least, so that it has more than one subject: longer documents are split
MIN_BLOCK_CHARACTERS = 64  # a sentence, however little text there is


@dataclass
class TrainingCorpus:
    """A sample of a corpus.

    Attributes:
        files: number of files.
        share: share of the text that is sampled.
        documents: number of sampled documents.
        characters: number of sampled characters.
        words: word → its frequency in the texts to learn from.
        held_out: blocks of text to measure on.
    """

    files: int
    share: float
    documents: int = 0
    characters: int = 0
    words: Counter[str] = field(default_factory=Counter)
    held_out: list[str] = field(default_factory=list)

    def figures(self) -> dict[str, int | float]:
        """Returns how much was read, for the report."""
        return {name: getattr(self, name) for name in ("files", "share", "documents", "characters")}


def read_training_corpus(
    paths: Sequence[Path | str],
    sample_mb: float,
    seed: int,
    scripts: Iterable[str],
    fields: FieldOptions | None = None,
) -> TrainingCorpus:
    """Reads a sample of the texts once.

    Every twentieth block of text is held out, of a large corpus fewer, evenly distributed.

    Args:
        paths: of the corpus: files and directories.
        sample_mb: megabytes (10^6 bytes) of text to sample, at most.
        seed: of the sample.
        scripts: names of the Unicode scripts whose words are counted.
        fields: which columns of a record are read; None as without options.

    Raises:
        UserError: there is too little text to hold any out.
    """
    files = find_files(paths)
    size_bytes = total_bytes(files)
    share = min(1.0, sample_mb * 1e6 / max(1, size_bytes))
    held_out_bytes = min(HELD_OUT_BYTES, share * size_bytes * HELD_OUT_SHARE)
    period = round(share * size_bytes / max(1.0, held_out_bytes))
    block_characters = max(MIN_BLOCK_CHARACTERS, int(held_out_bytes / HELD_OUT_BLOCKS / 3))  # Chinese: 3 bytes each
    corpus = TrainingCorpus(len(files), share)

    texts = read_texts(files, share, seed, block_characters, fields)

    def learned_blocks() -> Iterator[str]:
        for number, block in enumerate(_blocks(corpus, texts, block_characters)):
            if number % period == period // 2:
                corpus.held_out.append(block)
            else:
                yield block

    corpus.words = count_words(learned_blocks(), word_pattern(scripts))
    if not any(map(str.strip, corpus.held_out)):
        sampled = f"--sample_mb {sample_mb:g} leaves" if share < 1.0 else "--data_input_dirs has"
        raise UserError(
            f"nothing can be held out to measure on: {sampled} {corpus.characters:,} characters in "
            f"{corpus.documents:,} documents; {'raise it' if share < 1.0 else 'give more text'}"
        )
    return corpus


def _blocks(corpus: TrainingCorpus, texts: Iterator[CorpusText], block_characters: int) -> Iterator[str]:
    """Yields the sampled texts in blocks; counts documents and characters in `corpus`."""
    location = None
    with progress_bar(texts, unit="text", desc="reading") as bar:
        for text in bar:
            corpus.documents += text.location != location
            corpus.characters += len(text.text)
            location = text.location
            yield from split_into_blocks(text.text, block_characters)
