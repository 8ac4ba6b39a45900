"""Check of an export (--check): source and export answer a text, each in a process of its own."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colossal_llama.export.arguments import CheckArguments
from colossal_llama.export.source import ExportSource
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.errors import UserError

_RUN = "import runpy, sys; runpy.run_path(sys.argv[1])['main']()"
_TRANSFORMERS, _LLAMA_CPP = (Path(__file__).with_name(f"{name}_probe.py") for name in ("transformers", "gguf"))
_SHOWN_CHARACTERS = 500


@dataclass(frozen=True)
class Answer:
    """A model's answer to a text.

    Attributes:
        found: what the probe wrote: prompt_ids, ids, text, versions, and for each answer token the
            margin of its logit over the second.
        logits: (tokens of the prompt, vocabulary), float32.
    """

    found: dict[str, Any]
    logits: np.ndarray


def check_export(options: CheckArguments, source: ExportSource, output: Path, gguf: str | None) -> dict[str, Any]:
    """Compares the answers of source and export, and prints them.

    Args:
        options: the text, and how it is answered.
        source: the model or adapter that was exported.
        output: the export.
        gguf: name of the GGUF file in it, if it has one.

    Returns:
        What the record keeps of the check.

    Raises:
        UserError: the export cannot be loaded, or computes NaN or Inf.
    """
    is_adapter = (output / "adapter_config.json").is_file()
    before = answer_of(options, "the source", source.base, source.adapter, source.tokenizer)
    after = answer_of(
        options, "the export", source.base if is_adapter else output, output if is_adapter else None, output
    )
    record = _compared(before, after)
    log_rank_zero(
        f"--check with transformers {record['transformers']}, {'chat' if record['is_chat'] else 'plain'} prompt:"
    )
    log_rank_zero(f"  source: {record['source_answer']!r}\n  export: {record['export_answer']!r}")
    log_rank_zero(f"  {_verdict(record)}")
    if gguf:
        record["gguf"] = _check_gguf(options, output / gguf, after)
    return record


def answer_of(options: CheckArguments, what: str, model: Path, adapter: Path | None, tokenizer: Path) -> Answer:
    """Answers the text by transformers in a new process of this interpreter.

    Raises:
        UserError: the model cannot be loaded; `what` names it in the sentence.
    """
    with tempfile.TemporaryDirectory() as scratch:
        request = {
            "model": str(model.resolve()),
            "adapter": str(adapter.resolve()) if adapter else None,
            "tokenizer": str(tokenizer.resolve()),
            "text": options.check,
            "max_new_tokens": options.check_tokens,
            "device": options.device,
            "logits": f"{scratch}/logits.npy",
        }
        found = _run_probe(_TRANSFORMERS, request, Path(scratch), f"--check: {what} cannot be loaded by transformers")
        return Answer(found, np.load(f"{scratch}/logits.npy"))


def _run_probe(probe: Path, request: Mapping[str, Any], scratch: Path, problem: str) -> dict[str, Any]:
    """Runs a probe in a new process of this interpreter.

    Raises:
        UserError: it has failed; `problem` begins the sentence.
    """
    answer, file = scratch / "answer.json", scratch / "request.json"
    file.write_text(json.dumps({**request, "answer": str(answer)}), encoding="utf-8")
    # Nothing is fetched: what the export lacks would come from the hub unseen.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-P", "-c", _RUN, str(probe), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if done.returncode == 0 and answer.is_file():
        return json.loads(answer.read_text(encoding="utf-8"))
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        reason = (
            f"{name}; SIGKILL means that this host has too little memory for the model" if name == "SIGKILL" else name
        )
        raise UserError(f"{problem}: the process was ended by {reason}")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    raise UserError(f"{problem}: {(lines or [f'exit code {done.returncode}'])[-1][-_SHOWN_CHARACTERS:]}")


def _compared(before: Answer, after: Answer) -> dict[str, Any]:
    if before.found["prompt_ids"] != after.found["prompt_ids"]:
        raise UserError("--check: the tokenizer of the export makes other prompt ids than that of the source")
    if np.isfinite(before.logits).all() and not np.isfinite(after.logits).all():
        raise UserError(
            "--check: the export computes NaN or Inf where the source does not: its activations are beyond the range "
            "of this dtype; export with --dtype bfloat16 or float32"
        )
    largest = float(np.abs(before.logits - after.logits).max())
    one, other = before.found["ids"], after.found["ids"]
    equal = _equal_beginning(one, other)
    return {
        "transformers": after.found["transformers"],
        "is_chat": after.found["is_chat"],
        "prompt_tokens": len(after.found["prompt_ids"]),
        "source_answer": before.found["text"],
        "export_answer": after.found["text"],
        "answer_tokens": len(other),
        "equal_answer_tokens": equal,
        "is_answer_equal": one == other,
        "margin_where_answers_differ": _margin(before, equal) if one != other else None,
        "largest_logit": float(np.abs(before.logits).max()),
        "largest_logit_difference": largest,
        "equal_next_tokens": int((before.logits.argmax(-1) == after.logits.argmax(-1)).sum()),
    }


def _equal_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens until two answers differ."""
    differing = (index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(one), len(other)))


def _margin(answer: Answer, position: int) -> float | None:
    """Margin of an answer token's logit over the second; None behind the end of the answer."""
    margins = answer.found["margins"]
    return margins[position] if position < len(margins) else None


def _explained(margin: float | None) -> str:
    """States how near to a tie an answer is where another one differs from it first."""
    return "" if margin is None else f", where the two most probable tokens are {margin:.2g} apart in the logits"


def _verdict(record: Mapping[str, Any]) -> str:
    if record["largest_logit_difference"] == 0:
        logits = f"logits equal bit for bit over {record['prompt_tokens']} tokens of prompt"
    else:
        logits = (
            f"logits, each in its own dtype, differ by up to {record['largest_logit_difference']:.3g} (the largest is "
            f"{record['largest_logit']:.3g}); the most probable next token is the same at "
            f"{record['equal_next_tokens']} of {record['prompt_tokens']} tokens of prompt"
        )
    if record["is_answer_equal"]:
        return f"{logits}; the answers are equal"
    return (
        f"{logits}; the answers differ after {record['equal_answer_tokens']} of {record['answer_tokens']} tokens"
        f"{_explained(record['margin_where_answers_differ'])}"
    )


def _check_gguf(options: CheckArguments, file: Path, expected: Answer) -> dict[str, Any] | None:
    """Answers with llama.cpp where its package is installed; else says how to try the file."""
    if importlib.util.find_spec("xllamacpp") is None:
        log_rank_zero(
            f"  GGUF: not tried, as the package xllamacpp is not installed; try it with: llama-cli -m {file} -p "
            f"{options.check!r}"
        )
        return None
    request = {
        "model": str(file),
        "prompt_ids": expected.found["prompt_ids"],
        "max_new_tokens": options.check_tokens,
    }
    with tempfile.TemporaryDirectory() as scratch:
        found = _run_probe(_LLAMA_CPP, request, Path(scratch), f"--check: {file.name} cannot be loaded by llama.cpp")
    one, other = expected.found["ids"], found["ids"]
    equal = _equal_beginning(one, other)
    margin = _margin(expected, equal) if one != other else None
    verdict = f"the answers differ after {equal} of {len(one)} tokens{_explained(margin)}"
    log_rank_zero(
        f"  GGUF (xllamacpp {found['xllamacpp']}): {found['text']!r}; "
        f"{'the answers are equal' if one == other else verdict}"
    )
    return {
        "xllamacpp": found["xllamacpp"],
        "answer": found["text"],
        "equal_answer_tokens": equal,
        "margin_where_answers_differ": margin,
    }
