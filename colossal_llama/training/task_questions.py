"""Questions of `--eval_tasks`, read and tokenized as evaluate.py does, the same on all ranks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from colossal_llama.evaluation.faults import say_faults
from colossal_llama.evaluation.prompts import PromptEncoder, all_prompt_ids
from colossal_llama.evaluation.questions import FIRST_TOKEN, LETTER_OR_FIRST_TOKEN, Subject
from colossal_llama.evaluation.tasks.registry import open_tasks
from colossal_llama.model.rope import varying_rope_problem
from colossal_llama.training.arguments import TaskArguments
from colossal_llama.training.distributed import consensus
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError

_MAX_LENGTH = 2048
"""Of the published protocol, for models of LLaMA-2's size."""
_NONE = -2
"""No choice is right."""
_OWN_NAMES = {
    "--tasks": "--eval_tasks",
    "--data_dir": "--eval_task_dir",
    "--subjects": "--eval_task_subjects",
    "--limit": "--eval_task_limit",
    "--shots": "--eval_task_shots",
    "--template": "--eval_task_template",
}
"""Options of evaluate.py, by which messages name them, and those of train.py."""


@dataclass(frozen=True)
class PromptedQuestion:
    """A question as token ids."""

    task: str
    prompt: np.ndarray
    """int32 (tokens,)."""
    choices: tuple[tuple[int, ...], ...]
    """For each choice the tokens that stand for it."""
    right: int
    """Index of the right choice; negative where the label is none of them."""


def open_questions(
    arguments: TaskArguments, tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig
) -> tuple[PromptedQuestion, ...]:
    """Reads the questions on rank 0, and gives them to all ranks; a collective.

    Ranks that read for themselves would diverge where a file differs between hosts.

    Raises:
        CollectiveError: a file is absent or damaged, or a task needs generated answers.
    """
    if not arguments.eval_tasks:
        return ()
    found: list[Any] = [None]
    with consensus.raise_on_all_ranks():
        if is_rank_zero():
            found = [_read_questions(arguments, tokenizer, config)]
    dist.broadcast_object_list(found, src=0)
    return found[0]


def _read_questions(
    arguments: TaskArguments, tokenizer: PreTrainedTokenizerFast, config: PretrainedConfig
) -> tuple[PromptedQuestion, ...]:
    subjects = _opened(arguments)
    _refuse_generated_answers(subjects)
    say_faults(subjects)
    encoder, max_length = PromptEncoder(tokenizer), _max_length(arguments, config)
    questions = tuple(question for subject in subjects for question in _prompted(subject, encoder, max_length))
    if not questions:
        raise UserError("--eval_tasks: no question that could be scored is left: give a larger --eval_task_limit")
    lengths = [len(question.prompt) for question in questions]
    if problem := varying_rope_problem(config, min(lengths), max(lengths), several_in_a_micro_batch=True):
        raise UserError(f"--eval_tasks: {problem}")
    return questions


def _max_length(arguments: TaskArguments, config: PretrainedConfig) -> int:
    """Most tokens of a prompt; as evaluate.py's, the model has positions for them."""
    given, positions = arguments.eval_task_max_length, config.max_position_embeddings
    if given is not None and given > positions:
        raise UserError(
            f"--eval_task_max_length {given} is more than the model's {positions:,} positions "
            f"(max_position_embeddings in its config.json): give {positions} or less"
        )
    return given or min(_MAX_LENGTH, positions)


def _opened(arguments: TaskArguments) -> list[Subject]:
    try:
        return open_tasks(
            list(arguments.eval_tasks),
            arguments.eval_task_dir,
            subjects=arguments.eval_task_subjects,
            limit=arguments.eval_task_limit,
            shots=arguments.eval_task_shots,
            template=arguments.eval_task_template,
        )
    except UserError as error:  # names evaluate.py's options
        problems = error.problems
        for name, own in _OWN_NAMES.items():
            problems = [problem.replace(name, own) for problem in problems]
        raise UserError(problems) from error


def _prompted(subject: Subject, encoder: PromptEncoder, max_length: int) -> Sequence[PromptedQuestion]:
    questions = [question for question in subject.questions if question.is_scored]
    prompts = all_prompt_ids(subject, questions, encoder, max_length)
    return [
        PromptedQuestion(
            task=subject.task,
            prompt=np.asarray(prompt, dtype=np.int32),
            choices=tuple(encoder.choice_token_ids(letter) for letter in question.choices),
            right=question.choices.index(question.label) if question.label in question.choices else _NONE,
        )
        for question, prompt in zip(questions, prompts, strict=True)
    ]


def _refuse_generated_answers(subjects: Sequence[Subject]) -> None:
    """Refuses tasks without choices; AGIEval's are answered by their first token alone."""
    generated = sorted({s.task for s in subjects if s.scored_by not in (FIRST_TOKEN, LETTER_OR_FIRST_TOKEN)})
    if generated:
        raise UserError(
            f"--eval_tasks: the answers of {', '.join(generated)} are generated word by word, for which training is "
            "not made: leave them out here, and run evaluate.py on a checkpoint's modelling/"
        )
    for task in sorted({s.task for s in subjects if s.scored_by == LETTER_OR_FIRST_TOKEN}):
        log_rank_zero(
            f"--eval_tasks {task}: answered by the first token alone. evaluate.py counts a question as right also "
            "where the generated text names the letter, so its accuracy may be higher"
        )


def describe_interval(arguments: TaskArguments) -> str:
    """Names the steps after which the questions are asked."""
    interval = arguments.eval_task_interval
    return f"every {interval:,} steps and at the end" if interval else "at the end"


def describe_questions(questions: Sequence[PromptedQuestion]) -> str:
    """Numbers of questions and tokens, by task."""
    counts = Counter(question.task for question in questions)
    tokens = sum(len(question.prompt) for question in questions)
    by_task = ", ".join(f"{task} {count:,}" for task, count in counts.items())
    return f"{len(questions):,} questions, {tokens:,} tokens ({by_task})"
