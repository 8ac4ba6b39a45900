"""Fits long conversations into rows: by leaving out turns, or as overlapping windows."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from colossal_llama.dataset.conversation import EncodedConversation, Message

Encode = Callable[[Sequence[Message]], EncodedConversation]


def truncated(messages: Sequence[Message], encode: Encode, max_length: int) -> tuple[EncodedConversation | None, int]:
    """Truncates a conversation after its last trained answer that fits into a row.

    Args:
        messages: of the conversation.
        encode: encodes a subset of them.
        max_length: maximum length of a row in tokens.

    Returns:
        The encoded conversation and the number of turns left out; (None, 0) if no trained answer
            fits. Its target spans are those of the trained answers.
    """
    answers = [(number, message) for number, message in enumerate(messages, 1) if message.role == "assistant"]
    ends = [number for number, message in answers if message.is_trained]
    encoded: dict[int, EncodedConversation] = {}

    def length(end: int) -> int:
        encoded[end] = encode(messages[:end])
        return len(encoded[end].input_ids)

    fitting = bisect_right(ends, max_length, key=length)
    if not fitting:
        return None, 0
    end = ends[fitting - 1]
    kept = encoded.get(end) or encode(messages[:end])
    spans = [span for (_, answer), span in zip(answers, kept.target_spans, strict=False) if answer.is_trained]
    return replace(kept, target_spans=spans), len(messages) - end


def windows(
    messages: Sequence[Message], encode: Encode, max_length: int
) -> tuple[list[EncodedConversation], list[int]]:
    """Divides a conversation into overlapping windows; each trained answer is a target in one.

    A window begins with a question: the earliest for which the context and the first new answer
    fill at most half of the row. It extends to the end of the row. Answers that are targets in an
    earlier window, and those that are not trained, are context.

        turns      h a h a h a h a h a          (a system message goes with every window)
        window 1   h A h A h A
        window 2       h a h a h A h A          (capital: a target)

    Args:
        messages: of the conversation.
        encode: encodes a subset of them.
        max_length: maximum length of a row in tokens.

    Returns:
        The windows, and the numbers (among the answers, from 0) of the answers that do not fit into
            a row together with their question alone.
    """
    system = list(messages[:1]) if messages and messages[0].role == "system" else []
    turns = list(messages[len(system) :])
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    trained = [number for number in answers if turns[number].is_trained]
    starts = [
        n for n, turn in enumerate(turns) if n == 0 or (turn.role == "human" and turns[n - 1].role == "assistant")
    ]

    def window_of(start: int, end: int) -> EncodedConversation:
        return encode([*system, *turns[start:end]])

    found: list[EncodedConversation] = []
    too_long: list[int] = []
    following = 0
    while following < len(trained):
        answer = trained[following]
        possible = [start for start in starts if start <= answer]
        if len(window_of(possible[-1], answer + 1).input_ids) > max_length:
            too_long.append(answers.index(answer))
            following += 1
            continue
        # The later the start, the shorter the window: counts the starts, from the last on, whose
        # window fills at most half a row.
        roomy = bisect_right(
            possible[::-1], max_length // 2, key=lambda start: len(window_of(start, answer + 1).input_ids)
        )
        start = possible[-max(roomy, 1)]
        later = trained[following:]
        fitting = bisect_right(later, max_length, key=lambda end: len(window_of(start, end + 1).input_ids))
        window = window_of(start, later[fitting - 1] + 1)
        within = zip([number for number in answers if number >= start], window.target_spans, strict=False)
        found.append(replace(window, target_spans=[span for number, span in within if number in later[:fitting]]))
        following += fitting
    return found, too_long
