"""Generates answers for a file of prompts."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from colossal_llama.inference.arguments import Sampling, report_path
from colossal_llama.inference.generation import Completion
from colossal_llama.readers.record import RecordError, parse_row
from colossal_llama.readers.rows import BYTE_ORDER_MARK
from colossal_llama.utils.atomic_io import fsync_path, temporary_path, write_json
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.errors import UserError, truncate_problems

if TYPE_CHECKING:
    from colossal_llama.inference.api import LanguageModel, Prompt

Parsed = TypeVar("Parsed")


def read_prompts(path: Path, prompt_of: Callable[[dict], Parsed]) -> list[tuple[dict, Parsed]]:
    """Reads a .jsonl file of prompts; empty lines are skipped.

    Args:
        path: the file.
        prompt_of: returns a record's prompt, or raises `RecordError`.

    Returns:
        Records and their prompts.

    Raises:
        UserError: names the lines that are no such records (up to 20), or there is no record.
    """
    prompts, problems = [], []
    for number, line in enumerate(path.read_bytes().removeprefix(BYTE_ORDER_MARK).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = parse_row(line)
            prompts.append((record, prompt_of(record)))
        except RecordError as error:
            problems.append(f"{path}, line {number}: {error}")
    if problems:
        raise UserError(truncate_problems(problems))
    if not prompts:
        raise UserError(f"{path} holds no prompt")
    return prompts


@dataclass
class _Totals:
    prompts: int = 0
    prompt_tokens: int = 0
    reused_prompt_tokens: int = 0
    generated_tokens: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)

    def add(self, completion: Completion) -> None:
        self.prompts += 1
        self.prompt_tokens += completion.prompt_tokens
        self.reused_prompt_tokens += completion.reused_tokens
        self.generated_tokens += len(completion.token_ids)
        self.finish_reasons[str(completion.finish_reason)] += 1

    def report(self, duration_s: float) -> dict[str, Any]:
        """Counts, and the throughput over a duration, as JSON values."""
        return {
            "prompts": self.prompts,
            "prompt_tokens": self.prompt_tokens,
            "reused_prompt_tokens": self.reused_prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "stopped": dict(self.finish_reasons),
            "seconds": round(duration_s, 3),
            "tokens_per_second": round(self.generated_tokens / duration_s, 2),
        }


def generate_file(
    model: "LanguageModel", sampling: Sampling, records: list[dict], prompts: "Sequence[Prompt]", output: Path
) -> dict[str, Any]:
    """Writes every record with `generated`, `generated_tokens` and `stopped`, in order.

    The file appears when all answers are there. After a failure or an interrupt, the answers so far
    are kept as `OUTPUT.partial.jsonl`, or `OUTPUT.partial-1.jsonl` where that exists.

    Args:
        model: generates the answers.
        sampling: of the answers; prompt i is sampled with seed + i, so that its answer does not
            depend on the others.
        records: the records to extend.
        prompts: of each record.
        output: the file to write.

    Returns:
        The report, also written to `OUTPUT.report.json`.

    Raises:
        UserError: prompts leave no position for an answer; raised before the first is generated.
    """
    answers = model.answers(prompts, sampling)
    started, totals = time.monotonic(), _Totals()
    temporary = temporary_path(output)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            with progress_bar(total=len(records), desc="answers", unit="prompt") as bar:
                for record, completion in zip(records, answers, strict=True):
                    file.write(_extended_record(record, completion))
                    totals.add(completion)
                    bar.set_postfix_str(f"{totals.generated_tokens / (time.monotonic() - started):.1f} tokens/s")
                    bar.update()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(output)
    except BaseException:
        _keep_partial(temporary, output)
        raise
    fsync_path(output.parent)
    report = totals.report(time.monotonic() - started)
    write_json(report_path(output), report)
    return report


def _extended_record(record: dict, completion: Completion) -> str:
    """Formats a line of the output file."""
    added = {
        "generated": completion.text,
        "generated_tokens": len(completion.token_ids),
        "stopped": completion.finish_reason,
    }
    return json.dumps({**record, **added}, ensure_ascii=False) + "\n"


def _keep_partial(temporary: Path, output: Path) -> None:
    """Keeps the answers so far; the last line may be incomplete if the disk was full."""
    if temporary.exists() and temporary.stat().st_size:
        partial = _free_name(output)
        temporary.replace(partial)
        log_rank_zero(f"the answers so far are in {partial}")
    else:
        temporary.unlink(missing_ok=True)


def _free_name(output: Path) -> Path:
    """The name of the answers so far: an earlier run's, or somebody else's, are kept."""
    names = (output.with_suffix(f".partial{f'-{number}' if number else ''}.jsonl") for number in count())
    return next(path for path in names if not path.exists() and not path.is_symlink())
