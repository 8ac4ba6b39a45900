"""Chats on the terminal, with the conversation's history."""

import sys
from collections.abc import Callable

from colossal_llama.inference.api import LanguageModel
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.generation import Completion
from colossal_llama.utils.cli import is_decodable
from colossal_llama.utils.errors import UserError

RESET, EXIT = "/reset", "/exit"


def chat(
    model: LanguageModel, sampling: Sampling, print_text: Callable[[str], None], print_notice: Callable[[str], None]
) -> list[Completion]:
    """Answers the lines of standard input until its end or `/exit`; `/reset` clears the history.

    When the conversation is too long for the model, its oldest exchanges are dropped, with a
    notice. Ctrl-C ends an answer; its exchange is removed from the history.

    Args:
        model: answers.
        sampling: of all answers; its seed is that of the whole chat.
        print_text: prints a piece of the answer.
        print_notice: prints a line for the user that is not part of the answer.

    Returns:
        All answers.
    """
    history: list[dict[str, str]] = []
    answers: list[Completion] = []
    random_source = model.random_source(sampling.seed)
    print_notice(f"an empty line is skipped, {RESET} begins a new conversation, {EXIT} or Ctrl-D ends")
    while (line := _next_line()) is not None:
        if not is_decodable(line):
            print_notice(f"that line holds bytes that are not {sys.stdin.encoding} and is left out")
            continue
        if line == RESET:
            history = []
            print_notice("a new conversation")
            continue
        try:
            answer = model.chat(line, history, sampling, random_source)
            if dropped := answer.dropped_messages:
                print_notice(f"the conversation is too long for the model: its oldest {dropped} messages are dropped")
            print_text("Assistant: ")
            for piece in answer:
                print_text(piece)
        except (UserError, KeyboardInterrupt) as error:
            print_notice(str(error) or "interrupted")
            continue
        print_text("\n")
        history = answer.history
        answers.append(answer.completion)
    return answers


def _next_line() -> str | None:
    """Reads the next non-empty line; None at the end of the input, at `/exit` and at Ctrl-C."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        import readline  # noqa: F401 (gives input() its line editing)
    while True:
        try:
            line = (input("Human: ") if is_terminal else next(sys.stdin)).strip()
        except (EOFError, StopIteration, KeyboardInterrupt):
            return None
        if line:
            return None if line == EXIT else line
