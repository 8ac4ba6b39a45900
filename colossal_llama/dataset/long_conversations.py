"""Fits conversations that are longer than a row: whole turns are left out, or windows are made of them."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from colossal_llama.dataset.conversation import EncodedConversation, Message

Encode = Callable[[Sequence[Message]], EncodedConversation]


def truncated(messages: Sequence[Message], encode: Encode, max_length: int) -> tuple[EncodedConversation | None, int]:
    """The conversation up to its last answer that fits, and how many turns were left out; None if no answer fits."""
    ends = [number for number, message in enumerate(messages, 1) if message.role == "assistant"]
    encoded: dict[int, EncodedConversation] = {}

    def length(end: int) -> int:
        encoded[end] = encode(messages[:end])
        return len(encoded[end].input_ids)

    fitting = bisect_right(ends, max_length, key=length)
    if not fitting:
        return None, 0
    end = ends[fitting - 1]
    return encoded.get(end) or encode(messages[:end]), len(messages) - end


def windows(
    messages: Sequence[Message], encode: Encode, max_length: int
) -> tuple[list[EncodedConversation], list[int]]:
    """Overlapping windows in which every answer that fits with its question is a target exactly once.

    A window begins with a question, as early as its first new answer lets the context fill at most
    half of the row, and goes on as far as the row does. Answers that an earlier window trained are
    context.

        turns      h a h a h a h a h a          (a system message goes with every window)
        window 1   h A h A h A
        window 2       h a h a h A h A          capital: a target

    Returns:
        The windows, and the numbers (among the answers, from 0) of those that do not fit even with
            nothing but their question.
    """
    system = list(messages[:1]) if messages and messages[0].role == "system" else []
    turns = list(messages[len(system) :])
    answers = [number for number, turn in enumerate(turns) if turn.role == "assistant"]
    starts = [
        n for n, turn in enumerate(turns) if n == 0 or (turn.role == "human" and turns[n - 1].role == "assistant")
    ]

    def part(start: int, end: int) -> EncodedConversation:
        return encode([*system, *turns[start:end]])

    found: list[EncodedConversation] = []
    too_long: list[int] = []
    following = 0
    while following < len(answers):
        answer = answers[following]
        possible = [start for start in starts if start <= answer]
        if len(part(possible[-1], answer + 1).input_ids) > max_length:
            too_long.append(following)
            following += 1
            continue
        # the shorter the part, the later its start: count the starts, from the last on, whose part
        # fills half a row at most
        roomy = bisect_right(possible[::-1], max_length // 2, key=lambda start: len(part(start, answer + 1).input_ids))
        start = possible[-max(roomy, 1)]
        later = answers[following:]
        fitting = bisect_right(later, max_length, key=lambda end: len(part(start, end + 1).input_ids))
        window = part(start, later[fitting - 1] + 1)
        found.append(replace(window, target_spans=window.target_spans[-fitting:]))
        following += fitting
    return found, too_long
