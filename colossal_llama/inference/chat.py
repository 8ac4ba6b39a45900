"""A conversation on the terminal."""

import sys
from collections.abc import Callable

from colossal_llama.dataset.conversation import Message
from colossal_llama.inference.generation import Answer, TextGenerator
from colossal_llama.inference.prompts import Template, conversation_prompt_ids, within_positions
from colossal_llama.utils.cli import is_decodable
from colossal_llama.utils.errors import UserError

RESET, EXIT = "/reset", "/exit"


def chat(
    generator: TextGenerator,
    template: Template,
    system: str | None,
    show: Callable[[str], None],
    notice: Callable[[str], None],
) -> list[Answer]:
    """Answers the lines of standard input until its end or `/exit`; `/reset` forgets the conversation.

    When the conversation fills three quarters of the model's positions, its oldest exchanges are
    left out, with a notice. Ctrl-C ends an answer; the exchange it belongs to is forgotten.

    Args:
        show: shows a piece of the answer.
        notice: tells the user something.

    Returns:
        All answers.
    """
    opening = [Message("system", system)] if system is not None else []
    messages, answers = list(opening), []
    notice(f"an empty line is skipped, {RESET} begins a new conversation, {EXIT} or Ctrl-D ends")
    while (line := _next_line()) is not None:
        if not is_decodable(line):
            notice(f"that line holds bytes that are not {sys.stdin.encoding} and is left out")
            continue
        if line == RESET:
            messages = list(opening)
            notice("a new conversation")
            continue
        former, messages = messages, [*messages, Message("human", line)]
        try:
            messages, left_out = within_positions(template, messages, generator.max_positions * 3 // 4)
            if left_out:
                notice(f"the conversation is too long for the model: its oldest {left_out} messages are forgotten")
            prompt_ids = conversation_prompt_ids(template, messages)
            show("Assistant: ")
            answer = generator.generate(prompt_ids, show)
        except (UserError, KeyboardInterrupt) as error:
            notice(str(error) or "interrupted")
            messages = former
            continue
        show("\n")
        messages.append(Message("assistant", answer.text))
        answers.append(answer)
    return answers


def _next_line() -> str | None:
    """The next line that is not empty; None at the end of the input, at `/exit` and at Ctrl-C."""
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
