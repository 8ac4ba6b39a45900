"""Verification and counts of what an extended pre-tokenizer changes before pieces are added."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import PreTokenizer

from colossal_llama.tokenizer.pretokenizer import definition_of, extended_letters, extended_scripts, words_of
from colossal_llama.tokenizer.token_bytes import byte_level_text
from colossal_llama.utils.errors import UserError


@dataclass(frozen=True)
class PreTokenizerChanges:
    """Counts of what the source's own tokens give with and without the extension.

    Attributes:
        scripts: all scripts whose marks stay with their letters.
        added_scripts: those of them for which that is new.
        old_tokens_beginning_with_a_mark: tokens of the source that stood after a letter of the
            scripts, at the cut that is no longer there.
        lost_old_tokens: those of them that no letter of the scripts before them gives any more.
        pieces: requested pieces.
        changed_pieces: pieces whose ids of the source are others.
        piece_tokens_before: tokens of all pieces without the extension.
        piece_tokens_after: the same with the extension.
    """

    scripts: tuple[str, ...]
    added_scripts: tuple[str, ...]
    old_tokens_beginning_with_a_mark: int
    lost_old_tokens: int
    pieces: int
    changed_pieces: int
    piece_tokens_before: int
    piece_tokens_after: int


def pre_tokenizer_changes(
    source: Tokenizer, before: PreTokenizer, added_scripts: tuple[str, ...], pieces: Sequence[str]
) -> PreTokenizerChanges:
    """Compares a byte-level BPE tokenizer whose pre-tokenizer was extended with itself before.

    Args:
        source: the tokenizer, with the extended pre-tokenizer.
        before: its own pre-tokenizer.
        added_scripts: of the extension.
        pieces: texts of the requested pieces.

    Raises:
        UserError: a text without letters of the scripts would be cut otherwise.
    """
    old, new = _with_pre_tokenizer(source, before), _with_pre_tokenizer(source, source.pre_tokenizer)
    definition = definition_of(source)
    letters = extended_letters(definition)
    texts = {
        text: i for name, i in source.get_vocab(with_added_tokens=False).items() if (text := byte_level_text(name))
    }
    _verify_other_texts(old, new, (text for text in texts if letters.isdisjoint(text)))
    scripts = extended_scripts(definition)
    of_scripts = "".join(rf"\p{{scx={script}}}" for script in scripts)
    marks = regex.compile(rf"(?=\p{{M}})[{of_scripts}]")
    marks_first = {text: token_id for text, token_id in texts.items() if marks.match(text)}
    found, still_found = (_produced_after(tokenizer, marks_first, letters) for tokenizer in (old, new))
    pairs = list(zip(_encode(old, pieces), _encode(new, pieces), strict=True))
    return PreTokenizerChanges(
        scripts=scripts,
        added_scripts=added_scripts,
        old_tokens_beginning_with_a_mark=len(found),
        lost_old_tokens=len(found - still_found),
        pieces=len(pieces),
        changed_pieces=sum(ids != new_ids for ids, new_ids in pairs),
        piece_tokens_before=sum(len(ids) for ids, _ in pairs),
        piece_tokens_after=sum(len(ids) for _, ids in pairs),
    )


def _with_pre_tokenizer(source: Tokenizer, pre_tokenizer: PreTokenizer) -> Tokenizer:
    result = Tokenizer(source.model)
    result.normalizer = source.normalizer  # type: ignore[assignment]
    result.pre_tokenizer = pre_tokenizer  # type: ignore[assignment]
    return result


def _encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def _produced_after(tokenizer: Tokenizer, ids: dict[str, int], letters: Iterable[str]) -> set[str]:
    """Returns the texts of tokens that are produced after at least one of the letters."""
    pairs = [(text, letter) for text in ids for letter in letters]
    encoded = _encode(tokenizer, [letter + text for text, letter in pairs])
    return {text for (text, _), found in zip(pairs, encoded, strict=True) if ids[text] in found}


def _verify_other_texts(old: Tokenizer, new: Tokenizer, texts: Iterable[str]) -> None:
    """Compares the words of texts without letters of the scripts, one after the other.

    That they are equal follows from the form of the extension, if the pre-tokenizer's expression
    was read rightly.
    """
    text = "".join(texts)
    for joined in (text, text.replace("a", " a"), text[::-1]):
        for word, new_word in zip(words_of(old, joined), words_of(new, joined), strict=False):
            if word != new_word:
                raise UserError(
                    f"--extend_pretokenizer: the extended pre-tokenizer would cut {new_word[:40]!r} where the source's "
                    f"cuts {word[:40]!r}, a text without these scripts: nothing was written; its expression is of a "
                    "kind that cannot be extended"
                )
