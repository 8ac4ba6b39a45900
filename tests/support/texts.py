"""Texts in which encoders differ most easily."""

from hypothesis import strategies as st

# Pieces in which merges run far: spaces, repeated letters and signs, line ends, Chinese, bytes, ▁
# itself, control tokens.
FRAGMENTS = ["  ", "    ", "\n", "\n\n", "\t", "aaaa", "the ", "ing", "==", "----", "中国", "人民", "，", "。", "▁",
             "<s>", "<0x0A>", "😀", "é", "\u0301", "\x00", "\r\n", "http://", "0000", "ﬁ", "\ue000"]  # fmt: skip
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(FRAGMENTS), max_size=12
)
