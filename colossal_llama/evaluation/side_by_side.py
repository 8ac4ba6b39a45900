"""Greedy answers of several models to the same questions, side by side in one table.

A question is a line of a file that inference reads with `--input_file`, and each model is asked as
inference asks it. So that base models and fine-tuned ones answer the same file, a base model takes
the texts of a conversation for its source, and a fine-tuned one a source for its question.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from colossal_llama.dataset.chat_template import own_template
from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.trained_format import format_name, trained_template
from colossal_llama.evaluation.markdown_table import markdown_table
from colossal_llama.evaluation.result_file import ResultFile
from colossal_llama.evaluation.text_arguments import AnswerArguments, asked_format
from colossal_llama.inference.api import LanguageModel, Sampling
from colossal_llama.inference.arguments import PromptFormat
from colossal_llama.inference.batch import read_prompts
from colossal_llama.inference.prompts import open_template, prompt_messages, prompt_source
from colossal_llama.readers.record import RecordError
from colossal_llama.utils.arguments import option_values
from colossal_llama.utils.atomic_io import atomic_file, write_text
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_file
from colossal_llama.utils.output_file import output_file_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from colossal_llama.evaluation.ranks import Ranks

RESULTS = "answers"
"""Name of a model's results: OUT/MODEL/answers.jsonl."""
ANSWERS_MD, ANSWERS_JSONL = "answers.md", "answers.jsonl"
_MD_BEGINNING, _JSONL_BEGINNING = b"# Answers side by side", b'{"question_hash":'
_KEY = "question_hash"
_COST_OF_AN_ANSWER = 1000
"""Generating takes as long as reading so many characters."""


@dataclass(frozen=True)
class AskedQuestion:
    """A line of the file of questions.

    Attributes:
        record: as it was read.
        source: what a base model continues.
        prompt: messages that a fine-tuned model answers, or the text of one.
    """

    record: dict[str, Any]
    source: str
    prompt: str | list[Message]

    @property
    def key(self) -> str:
        """Checksum of the record."""
        content = orjson.dumps(self.record, option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    @property
    def text(self) -> str:
        """The question as it is shown."""
        if isinstance(self.prompt, str) or len(self.prompt) == 1:
            return self.source
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.prompt)


def read_questions(path: Path) -> list[AskedQuestion]:
    """Reads a file of questions.

    Raises:
        UserError: names the lines that hold none.
    """
    return [question for _, question in read_prompts(path, _question_of)]


def _question_of(record: dict) -> AskedQuestion:
    has_source = isinstance(record.get("source"), str)
    try:
        messages: list[Message] | None = prompt_messages(record)
    except RecordError:
        if not has_source:
            raise
        messages = None
    source = prompt_source(record) if has_source else "\n\n".join(message.content for message in messages or ())
    return AskedQuestion(record, source, source if messages is None else messages)


def answer_results(directory: Path, model: Mapping[str, str], dtype: str, arguments: AnswerArguments) -> ResultFile:
    """Prepares the file of a model's answers.

    Args:
        directory: OUT/MODEL.
        model: fingerprints of the model and its tokenizer.
        dtype: of the computation.
        arguments: options of questions.
    """
    form = {name: value for name, value in option_values(arguments.format).items() if value is not None}
    template = form.get("chat_template")
    if template is not None and Path(template).is_file():
        form["chat_template"] = fingerprint_file(Path(template))
    settings = {**model, "dtype": dtype, "max_new_tokens": arguments.max_new_tokens, **form}
    return ResultFile(directory, RESULTS, _KEY, settings)


def describe_format(chosen: PromptFormat, tokenizer: "PreTrainedTokenizerFast") -> str:
    """Names a format in which a model is asked."""
    if chosen.prompt_style == "pretrained":
        has_other = ", though its tokenizer has a chat template" if own_template(tokenizer) is not None else ""
        return f"--prompt_style pretrained, as a base model{has_other}"
    template = open_template(tokenizer, chosen.llama_version, chosen.chat_template, chosen.system == "")
    system = f", system prompt {chosen.system!r}" if chosen.system else ""
    return f"--prompt_style sft, {format_name(template.describe())}{system}"


def answer_questions(
    model: Any,
    tokenizer: "PreTrainedTokenizerFast",
    questions: Sequence[AskedQuestion],
    arguments: AnswerArguments,
    results: ResultFile,
    ranks: "Ranks",
) -> None:
    """Answers all questions with one model; answers that are on disk are not generated again.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: the model's.
        questions: to answer.
        arguments: options of questions.
        results: where the answers are kept.
        ranks: processes that share the questions.

    Raises:
        UserError: the answers on disk are of other settings, or the model cannot be asked so.
    """
    with ranks.stage():  # before anything is written, since the format may be refused
        chosen = asked_format(arguments.format, trained_template(tokenizer) is not None)
        asked = describe_format(chosen, tokenizer)
        opened = LanguageModel(model, tokenizer, chosen)
    ranks.first(results.begin)
    done = results.read()
    ranks.begin_count()
    ranks.gather(None)  # all have read before the first appends
    absent = list({question.key: question for question in questions if question.key not in done}.values())
    mine = ranks.share(absent, [len(question.text) + _COST_OF_AN_ANSWER for question in absent])
    with ranks.stage(), results.appending(ranks.rank) as append:
        if notice := opened.format_notice():
            log_rank_zero(notice)
        sampling = Sampling(max_new_tokens=arguments.max_new_tokens, do_sample=False)
        with progress_bar(total=len(absent), desc="answers", unit="question") as bar:

            def show(done: int) -> None:
                bar.update(done - bar.n)

            for question in mine:
                append({_KEY: question.key, "asked": asked, **_answer(opened, question, chosen, sampling)})
                show(ranks.count_done(1))
            ranks.wait_for(len(absent), show)


def _answer(opened: LanguageModel, question: AskedQuestion, chosen: PromptFormat, sampling: Sampling) -> dict[str, Any]:
    """An answer with its counts; `problem` says why there is none."""
    try:
        prompt = question.source if chosen.prompt_style == "pretrained" else question.prompt
        completion = opened.stream(prompt, sampling).finish()
    except UserError as error:  # too long, or refused by the chat template
        return {"generated": None, "generated_tokens": 0, "stopped": None, "problem": str(error)}
    return {
        "generated": completion.text,
        "generated_tokens": len(completion.token_ids),
        "stopped": completion.finish_reason,
    }


def ordered(questions: Sequence[AskedQuestion], results: ResultFile) -> list[dict[str, Any]]:
    """Records with a model's answers, in order.

    Raises:
        UserError: some are absent.
    """
    found = results.read()
    if absent := sum(question.key not in found for question in questions):
        raise UserError(
            f"{absent:,} answers are absent next to {results.path}: every process must write into the same "
            "directory; give an --output_dir that all hosts share"
        )
    return [{**question.record, **found[question.key]} for question in questions]


def output_problems(directory: Path) -> Iterator[str]:
    """Problems of the answers' files: what another program has written is not replaced."""
    if not directory.is_dir():
        return
    for name, beginning in ((ANSWERS_MD, _MD_BEGINNING), (ANSWERS_JSONL, _JSONL_BEGINNING)):
        if problem := output_file_problem(directory / name, beginning):
            yield problem


def write_answers(
    directory: Path,
    questions: Sequence[AskedQuestion],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    models: Mapping[str, str],
    max_new_tokens: int,
) -> None:
    """Writes answers.md and answers.jsonl.

    Args:
        directory: OUT.
        questions: in order.
        answers: of each model by name, in the order of the questions.
        models: path of each by name.
        max_new_tokens: most tokens of an answer.
    """
    with atomic_file(directory / ANSWERS_JSONL) as file:
        for place, question in enumerate(questions):
            of_models = {model: _generated(found[place]) for model, found in answers.items()}
            line = {_KEY: question.key, "question": question.text, "record": question.record, "answers": of_models}
            file.write(orjson.dumps(line) + b"\n")
    facts = [
        f"{model} ({models[model]}): {', '.join(sorted({answer['asked'] for answer in found}))}"
        for model, found in answers.items()
    ]
    facts.append(f"greedy, at most {max_new_tokens:,} tokens; … marks an answer that ended there")
    rows = [
        [str(place + 1), question.text, *(_cell(found[place]) for found in answers.values())]
        for place, question in enumerate(questions)
    ]
    parts = ["# Answers side by side", "", *(f"- {fact}" for fact in facts), ""]
    write_text(directory / ANSWERS_MD, "\n".join([*parts, markdown_table(["no.", "question", *answers], rows), ""]))


def _generated(answer: Mapping[str, Any]) -> dict[str, Any]:
    names = ("generated", "generated_tokens", "stopped", "problem")
    return {name: answer[name] for name in names if name in answer}


def _cell(answer: Mapping[str, Any]) -> str:
    if answer["generated"] is None:
        return f"(no answer: {answer['problem']})"
    return answer["generated"] + ("…" if answer["stopped"] == "length" else "")
