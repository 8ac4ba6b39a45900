"""Chats on the terminal, with the conversation's history."""

import sys
from collections.abc import Callable

from colossal_llama.dataset.conversation import Message
from colossal_llama.inference.generation import Completion, TextGenerator
from colossal_llama.inference.prompts import Template, conversation_prompt_ids, drop_oldest_exchanges
from colossal_llama.utils.cli import is_decodable
from colossal_llama.utils.errors import UserError

RESET, EXIT = "/reset", "/exit"


def chat(
    generator: TextGenerator,
    template: Template,
    system: str | None,
    print_text: Callable[[str], None],
    print_notice: Callable[[str], None],
) -> list[Completion]:
    """Answers the lines of standard input until its end or `/exit`; `/reset` clears the history.

    When the conversation fills three quarters of the model's positions, its oldest exchanges are
    dropped, with a notice. Ctrl-C ends an answer; its exchange is removed from the history.

    Args:
        generator: generates the answers.
        template: the conversation format.
        system: the system message; None: the template's own.
        print_text: prints a piece of the answer.
        print_notice: prints a line for the user that is not part of the answer.

    Returns:
        All answers.
    """
    initial_messages = [Message("system", system)] if system is not None else []
    messages, answers = list(initial_messages), []
    print_notice(f"an empty line is skipped, {RESET} begins a new conversation, {EXIT} or Ctrl-D ends")
    while (line := _next_line()) is not None:
        if not is_decodable(line):
            print_notice(f"that line holds bytes that are not {sys.stdin.encoding} and is left out")
            continue
        if line == RESET:
            messages = list(initial_messages)
            print_notice("a new conversation")
            continue
        history, messages = messages, [*messages, Message("human", line)]
        try:
            messages, dropped = drop_oldest_exchanges(template, messages, generator.max_positions * 3 // 4)
            if dropped:
                print_notice(f"the conversation is too long for the model: its oldest {dropped} messages are dropped")
            prompt_ids = conversation_prompt_ids(template, messages)
            print_text("Assistant: ")
            answer = generator.generate(prompt_ids, print_text)
        except (UserError, KeyboardInterrupt) as error:
            print_notice(str(error) or "interrupted")
            messages = history
            continue
        print_text("\n")
        messages.append(Message("assistant", answer.text))
        answers.append(answer)
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
