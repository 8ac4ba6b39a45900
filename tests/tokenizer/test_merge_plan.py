"""Merge plans leave no piece unreachable; expanded sentencepiece models agree, slow and fast."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from colossal_llama.tokenizer.expansion.merge_plan import apply_merges, is_reachable, plan_merges
from colossal_llama.tokenizer.expansion.pieces import Piece
from colossal_llama.tokenizer.expansion.reachability import verify_reachability
from colossal_llama.tokenizer.expansion.sentencepiece_bpe import expand_sentencepiece

REQUESTED = st.lists(st.text("abcd", min_size=1, max_size=7), max_size=40, unique=True)


def ranks(plan):
    return {piece: float(number) for number, piece in enumerate(plan.order)}


@settings(max_examples=300, deadline=None)
@given(requested=REQUESTED)
def test_every_piece_is_merged_from_its_tokens_by_its_merge_pair(requested):
    plan = plan_merges({piece: tuple(piece) for piece in requested}, {})
    rank = ranks(plan)
    for piece in [piece for piece in requested if len(piece) > 1] + list(plan.intermediates):
        merges = apply_merges(piece, rank)
        assert is_reachable(piece, rank)
        assert merges[-1] == plan.merge_pairs[piece]
    assert set(plan.order) == {piece for piece in requested if len(piece) > 1} | set(plan.intermediates)
    assert not set(plan.intermediates) & set(requested)


@settings(max_examples=200, deadline=None)
@given(requested=REQUESTED)
def test_every_intermediate_piece_is_needed(requested):
    plan = plan_merges({piece: tuple(piece) for piece in requested}, {})
    for intermediate in plan.intermediates:
        rank = {piece: rank for piece, rank in ranks(plan).items() if piece != intermediate}
        assert not all(is_reachable(piece, rank) for piece in requested)


def test_a_piece_that_merges_too_early_is_moved_and_needs_no_intermediate():
    plan = plan_merges({piece: tuple(piece) for piece in ["bc", "ab", "cd", "abcd"]}, {})
    assert plan.intermediates == ()
    assert plan.order.index("bc") > min(plan.order.index("ab"), plan.order.index("cd"))


def test_one_intermediate_piece_serves_several_pieces():
    plan = plan_merges({piece: tuple(piece) for piece in ["意大利", "澳大利亚", "大利是"]}, {})
    assert plan.intermediates[0] == "大利"
    assert len(plan.intermediates) == 2  # 澳大利亚 needs 澳大利 or 大利亚 as well


def sentencepiece_model(pieces, scores):
    """A BPE model over a, b, c with byte fallback, like LLaMA-2's."""
    proto = sentencepiece_model_pb2.ModelProto()
    kind = sentencepiece_model_pb2.ModelProto.SentencePiece.Type
    for name, type_ in (("<unk>", kind.UNKNOWN), ("<s>", kind.CONTROL), ("</s>", kind.CONTROL)):
        proto.pieces.add(piece=name, score=0, type=type_)
    for byte in range(256):
        proto.pieces.add(piece=f"<0x{byte:02X}>", score=0, type=kind.BYTE)
    for name, score in zip([*pieces, "▁", "a", "b", "c"], [*scores, -1e9, -1e9, -1e9, -1e9], strict=True):
        proto.pieces.add(piece=name, score=score, type=kind.NORMAL)
    spec = proto.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, True, len(proto.pieces)
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto


def fast_without_vocabulary():
    """A fast tokenizer with LLaMA-2's settings, whose vocabulary the expansion supplies."""
    fast = Tokenizer(models.BPE({"<unk>": 0}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast


OLD = st.lists(st.text("abc▁", min_size=2, max_size=5), max_size=12, unique=True)
NEW = st.lists(st.text("abcdé ", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=20, unique=True)
WORDS = st.lists(st.text("abcdéx \n", max_size=30), min_size=1, max_size=20)


@settings(max_examples=150, deadline=None)
@given(old=OLD, requested=NEW, texts=WORDS, seed=st.integers(0, 2**16))
def test_any_expanded_model_is_reachable_agrees_with_its_fast_twin_and_only_joins_old_tokens(
    old, requested, texts, seed
):
    random.Random(seed).shuffle(old)
    source = sentencepiece_model(old, [-float(number) for number in range(len(old))])
    expansion = expand_sentencepiece(source, fast_without_vocabulary(), [Piece(text, "") for text in requested])
    slow, fast = expansion.encoders
    reachability = verify_reachability(expansion.piece_ids, [slow, fast])
    assert set(reachability.unreachable) == set()
    assert len(expansion.piece_ids) + len(expansion.known) == len(requested)

    texts = [text.lstrip(" ") for text in texts]
    slow_ids, fast_ids = slow(texts), fast(texts)
    assert slow_ids == fast_ids
    old_processor = SentencePieceProcessor(model_proto=source.SerializeToString())
    names = [piece.piece for piece in source.pieces]
    names += [text.replace(" ", "▁") for text in expansion.pieces] + list(expansion.intermediates)
    for text, ids, old_tokens in zip(texts, fast_ids, old_processor.encode(texts, out_type=str), strict=True):
        assert boundaries(text, [names[token_id] for token_id in ids]) <= boundaries(text, old_tokens), text


def boundaries(text, tokens):
    """Byte positions at which a token ends."""
    ends, position = set(), 0
    for token in tokens:
        is_byte = len(token) == 6 and token.startswith("<0x")
        position += 1 if is_byte else len(token.encode())
        ends.add(position)
    assert position == len(("▁" + text.replace(" ", "▁")).encode()) or not text
    return ends


@settings(max_examples=60, deadline=None)
@given(
    long=st.lists(st.text("abc", min_size=17, max_size=60), min_size=1, max_size=4, unique=True),
    short=st.lists(st.text("abc", min_size=1, max_size=6), max_size=12, unique=True),
)
def test_long_pieces_are_reachable_and_leave_short_ones_as_they_are(long, short):
    short_plan = plan_merges({piece: tuple(piece) for piece in short}, {})
    plan = plan_merges({piece: tuple(piece) for piece in [*short, *long]}, {})
    rank = ranks(plan)
    for piece in [*long, *short, *plan.intermediates]:
        assert is_reachable(piece, rank)
        assert len(piece) == 1 or apply_merges(piece, rank)[-1] == plan.merge_pairs[piece]
    assert set(short_plan.intermediates) <= set(plan.intermediates)
