"""Splitting long documents: segments fit, can hold a target, and end where the text allows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.dataset.document_splitting import CutScores, cut_positions

TOKEN_BYTES = [b"", b"a", b" b", b".", b"\n", b"\n\n", "。".encode(), b"\xe4", b"\xbd", b"\xa0", b".\n\n", b" "]
SCORES = CutScores(TOKEN_BYTES)


@given(
    tokens=st.lists(st.integers(1, len(TOKEN_BYTES) - 1), min_size=1, max_size=200),
    max_length=st.integers(8, 40),
    data=st.data(),
)
@settings(max_examples=300, deadline=None)
def test_segments_fit_and_can_all_hold_a_target(tokens, max_length, data):
    target_start = data.draw(st.integers(1, max_length // 2))
    cuts = cut_positions(np.array(tokens), max_length, SCORES, first_cut_after=target_start)
    borders = [0, *cuts, len(tokens)]
    lengths = np.diff(borders)
    assert lengths.sum() == len(tokens)
    assert lengths.max() <= max_length
    if len(tokens) <= max_length:
        assert not cuts
    else:
        assert lengths.min() >= 2
        assert cuts[0] > target_start


def _only_cut(tokens: list[bytes], max_length: int) -> bytes:
    ids = np.array([TOKEN_BYTES.index(piece) for piece in tokens])
    (cut,) = cut_positions(ids, max_length, SCORES)
    return b"".join(tokens[:cut])


def test_the_best_place_near_the_limit_is_taken():
    words = [b" b"] * 60
    assert _only_cut([*words[:29], b"\n", b"\n", *words[:20]], 32) == b" b" * 29 + b"\n\n"  # a paragraph
    assert (
        _only_cut([*words[:29], b".", b"a", b" b", *words[:20]], 32) == b" b" * 29 + b".a b"
    )  # 2.a is no sentence's end
    assert _only_cut([*words[:29], b".", b" b", b"a", *words[:20]], 32) == b" b" * 29 + b"."
    assert _only_cut([*words[:30], "。".encode(), b"a", *words[:20]], 32) == b" b" * 30 + "。".encode()
    assert _only_cut([b"a"] * 40, 32) == b"a" * 32  # anywhere


def test_no_gap_is_left_that_hardly_any_document_would_fill():
    for offset, expected in ((20, 1024 - 20), (5, 1024)):  # 1,024 // 64 = 16 tokens are the shortest gap
        tokens = [b" b"] * (1024 - offset - 2) + [b"\n", b"\n"] + [b" b"] * 200
        ids = np.array([TOKEN_BYTES.index(piece) for piece in tokens])
        assert cut_positions(ids, 1024, SCORES) == [expected]


def test_no_character_is_cut_in_two():
    character = [b"\xe4", b"\xbd", b"\xa0"]
    for max_length in range(8, 14):
        ids = np.array([TOKEN_BYTES.index(piece) for piece in character * 20])
        cuts = cut_positions(ids, max_length, SCORES)
        assert cuts
        assert all(cut % 3 == 0 for cut in cuts[:-1])
