"""A file of prompts to a file of answers."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from colossal_llama.dataset.records import BYTE_ORDER_MARK, RecordError, parse_row
from colossal_llama.inference.generation import TextGenerator
from colossal_llama.utils.atomic_io import fsync_path, temporary_path, write_json
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.errors import UserError, truncate_problems


def read_prompts(path: Path, prompt_of: Callable[[dict], Any]) -> list[tuple[dict, Any]]:
    """Reads a .jsonl file of prompts; an empty line is skipped.

    Args:
        prompt_of: gives a record's prompt, or raises `RecordError`.

    Returns:
        Records and their prompts.

    Raises:
        UserError: lines are no such records (all are named, up to 20), or there is none.
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


def answer_all(
    generator: TextGenerator, records: list[dict], prompts: list[list[int]], output: Path, seed: int | None
) -> dict[str, Any]:
    """Writes every record with `generated`, `generated_tokens` and `stopped`, in order; the file appears when all are
    done. What there is of it when that fails, or is interrupted, is kept as `OUTPUT.partial.jsonl`.

    Args:
        prompts: token ids of each record's prompt.
        seed: prompt i is sampled with seed + i, whatever came before.

    Returns:
        What there is to report, also written to `OUTPUT.report.json`.

    Raises:
        UserError: prompts leave no room for an answer; found before the first is generated.
    """
    _refuse_too_long(prompts, generator.max_positions)
    started, tokens, reused, stopped = time.monotonic(), 0, 0, Counter()
    temporary = temporary_path(output)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            bar = progress_bar(zip(records, prompts, strict=True), total=len(records), desc="answers", unit="prompt")
            for index, (record, prompt_ids) in enumerate(bar):
                if seed is not None:
                    torch.manual_seed(seed + index)
                answer = generator.generate(prompt_ids)
                extra = {"generated": answer.text, "generated_tokens": len(answer.token_ids), "stopped": answer.stopped}
                file.write(json.dumps({**record, **extra}, ensure_ascii=False) + "\n")
                tokens, reused = tokens + len(answer.token_ids), reused + answer.reused_tokens
                stopped[answer.stopped] += 1
                bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.1f} tokens/s")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(output)
    except BaseException:
        _keep_partial(temporary, output)
        raise
    fsync_path(output.parent)
    seconds = time.monotonic() - started
    report = {
        "prompts": len(records),
        "prompt_tokens": sum(map(len, prompts)),
        "reused_prompt_tokens": reused,
        "generated_tokens": tokens,
        "stopped": dict(stopped),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 2),
    }
    write_json(output.with_suffix(".report.json"), report)
    return report


def _keep_partial(temporary: Path, output: Path) -> None:
    """Keeps the answers that there are; the last line may be cut where the disk was full."""
    if temporary.exists() and temporary.stat().st_size:
        partial = output.with_suffix(".partial.jsonl")
        temporary.replace(partial)
        log_rank_zero(f"the answers so far are in {partial}")
    else:
        temporary.unlink(missing_ok=True)


def _refuse_too_long(prompts: list[list[int]], max_positions: int) -> None:
    problems = [
        f"prompt {number} has {len(ids):,} tokens, the model {max_positions:,} positions: shorten it"
        for number, ids in enumerate(prompts, start=1)
        if len(ids) >= max_positions
    ]
    if problems:
        raise UserError(truncate_problems(problems))
