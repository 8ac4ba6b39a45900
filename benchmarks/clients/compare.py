"""Comparison of a client's token ids and greedy answers with those of the suite's own inference."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.clients.models import TriedModel
from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.role_names import ROLES
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.generation import TextGenerator
from colossal_llama.inference.prompts import conversation_prompt_ids, open_template
from colossal_llama.model.pretrained import load_for_inference, stop_token_ids
from colossal_llama.tokenizer.batch_encoder import BatchEncoder
from colossal_llama.tokenizer.encoding import TextEncoder

NEAR_TIE = 0.02
"""Difference of two logits below which rounding decides: a client computes in another order."""
LIKELIHOOD_TOLERANCE = 1e-3
"""In nats, of the sum over a text of up to 150 characters: fp32 rounds by 1e-5 a token."""
_CONTEXT_CHARACTERS, _SCORED_CHARACTERS, _SCORED_TEXTS = 100, 150, 100


@dataclass(frozen=True)
class Reference:
    """Ids and answers that the suite's own inference makes, for one model.

    Attributes:
        ids: of each text, without control tokens.
        begin: BOS, which other programs put before them; empty for a tokenizer without one.
        chats: ids of the prompt of each conversation; empty for a base model.
        prompts: ids that are continued.
        contexts: the same prompts of a base model as text, without BOS.
        greedy: generated ids of each prompt, with the token that ended the answer.
        margins: of each generated token, how far its logit is above the second.
        decode: gives the text of generated ids.
        pairs: texts and their continuations; the former are empty for half of them. Each is of
            another text: the harness mixes up pairs that are the same text cut at two positions.
        log_likelihoods: of the continuations, in nats.
        rows: ids and labels of the prepared conversations, as JSON.
    """

    ids: list[list[int]]
    begin: list[int]
    chats: list[list[int]]
    prompts: list[list[int]]
    contexts: list[str]
    greedy: list[list[int]]
    margins: list[list[float]]
    decode: Callable[[list[int]], str]
    pairs: list[tuple[str, str]]
    log_likelihoods: list[float]
    rows: set[str]


def our_reference(
    model: TriedModel,
    texts: list[str],
    conversations: list[list[dict[str, str]]],
    prompts: int,
    max_new_tokens: int,
) -> Reference:
    """Runs the suite's own tokenizer, prompts and greedy decoding in fp32."""
    network, tokenizer = load_for_inference(model.directory, "float32", torch.device("cpu"))
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    chats: list[list[int]] = []
    stops = stop_token_ids(network, tokenizer)
    if model.chats:
        template = open_template(tokenizer, None, None)
        chats = [
            conversation_prompt_ids(template, [Message(ROLES[m["role"]], m["content"]) for m in messages])
            for messages in conversations
        ]
        stops = stop_token_ids(network, tokenizer, template.turn_end_id)
    step = max(1, len(texts) // prompts)
    contexts = [text[:_CONTEXT_CHARACTERS] for text in texts[::step]][:prompts]
    given = chats[:prompts] if chats else [begin + ids for ids in _encode(tokenizer, contexts)]
    sampling = Sampling(do_sample=False, max_new_tokens=max_new_tokens)
    generator = TextGenerator(network, tokenizer)
    greedy = [generator.answer(prompt, stops, sampling).finish().token_ids for prompt in given]
    margins = [_margins(network, prompt, answer) for prompt, answer in zip(given, greedy, strict=True)]
    scored = texts[:: max(1, len(texts) // _SCORED_TEXTS)]
    pairs = [_halves(text) if number % 2 else ("", text[:_SCORED_CHARACTERS]) for number, text in enumerate(scored)]
    return Reference(
        ids=_encode(tokenizer, texts),
        begin=begin,
        chats=chats,
        prompts=given,
        contexts=contexts,
        greedy=greedy,
        margins=margins,
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        pairs=pairs,
        log_likelihoods=[_log_likelihood(network, tokenizer, begin, *pair) for pair in pairs],
        rows=_prepared_rows(model.data) if model.data else set(),
    )


def _encode(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    flat, lengths = BatchEncoder(TextEncoder(tokenizer)).encode(texts, [True] * len(texts))
    ends = lengths.cumsum().tolist()
    return [flat[end - length : end].tolist() for end, length in zip(ends, lengths.tolist(), strict=True)]


@torch.inference_mode()
def _margins(network: torch.nn.Module, prompt: list[int], answer: list[int]) -> list[float]:
    logits = network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    best = logits.topk(2).values
    return (best[:, 0] - best[:, 1]).tolist()


def _halves(text: str) -> tuple[str, str]:
    """Halves of the beginning; the first does not end in a space, which would go to the second."""
    text = text[:_SCORED_CHARACTERS]
    first = text[: len(text) // 2].rstrip()
    return first, text[len(first) :]


@torch.inference_mode()
def _log_likelihood(
    network: torch.nn.Module,
    tokenizer: PreTrainedTokenizerFast,
    begin: list[int],
    context: str,
    continuation: str,
) -> float:
    """Log-likelihood of the tokens that a continuation adds to those of its context.

    As the harness defines it: where a token spans both, the context has tokens of its own.
    """
    before, whole = _encode(tokenizer, [context, context + continuation])
    known = begin + before
    ids = torch.tensor(known + whole[len(before) :])
    logits = network(ids[None]).logits[0, :-1].double().log_softmax(-1)
    return logits.gather(1, ids[1:, None])[len(known) - 1 :].sum().item()


def _prepared_rows(directory: Path) -> set[str]:
    lines = (line for file in directory.glob("jsonl/*.jsonl") for line in file.read_text().splitlines())
    return {_row_as_json(row["input_ids"], row["labels"]) for row in map(json.loads, lines)}


def _row_as_json(ids: list[int], labels: list[int]) -> str:
    return json.dumps([ids, labels])


def write_requests(
    directory: Path,
    texts: list[str],
    conversations: list[list[dict[str, str]]],
    reference: Reference,
    trained: Sequence[list[dict[str, str]]] = (),
) -> None:
    """Writes the files that clients read, `NAME.jsonl` with one JSON value a line.

    Args:
        directory: where they go.
        texts: to tokenize (`texts`).
        conversations: to answer (`conversations`).
        reference: has `prompts`, `contexts` and `pairs`.
        trained: whole conversations of the training data (`trained`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, Sequence[Any]] = {"texts": texts, "conversations": conversations, "trained": trained}
    files |= {name: getattr(reference, name) for name in ("prompts", "contexts", "pairs")}
    for name, values in files.items():
        lines = [json.dumps(value, ensure_ascii=False) for value in values]
        (directory / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))


def compare(reference: Reference, answer: dict) -> dict[str, str]:
    """Compares a client's answer: "equal of all" for each kind of result that it gives."""
    cells = {}
    for key in ("ids", "chats"):
        found = answer.get(key)
        expected = getattr(reference, key)
        if found is not None and expected:
            pairs = zip(expected, found, strict=True)
            equal = sum(other in (one, [*reference.begin, *one]) for one, other in pairs)
            cells[key] = f"{equal:,} of {len(expected):,}"
    if (found := answer.get("greedy")) is not None:
        cells["greedy"] = _compare_greedy(reference, found)
    if (found := answer.get("answers")) is not None:
        cells["greedy"] = _compare_answers(reference, found)
    if (found := answer.get("log_likelihoods")) is not None:
        cells["log-likelihoods"] = _compare_likelihoods(reference.log_likelihoods, found)
    if (found := answer.get("rows")) is not None:
        cells["rows"] = _compare_rows(reference.rows, found)
    return cells


def _compare_greedy(reference: Reference, found: list[list[int]]) -> str:
    equal = ties = 0
    for expected, other, margins in zip(reference.greedy, found, reference.margins, strict=True):
        if expected == other:
            equal += 1
            continue
        pairs = enumerate(zip(expected, other, strict=False))
        first = next((number for number, (one, two) in pairs if one != two), min(len(expected), len(other)))
        ties += first < len(margins) and margins[first] < NEAR_TIE
    return f"{equal} of {len(found)}" + (f" + {ties} near ties" if ties else "")


def _compare_answers(reference: Reference, found: list[str]) -> str:
    """Compares texts; the first token that differs is the first whose text the other lacks."""
    equal = ties = 0
    for expected, other, margins in zip(reference.greedy, found, reference.margins, strict=True):
        if reference.decode(expected) == other:
            equal += 1
            continue
        beginnings = (reference.decode(expected[: number + 1]) for number in range(len(expected)))
        first = next((n for n, text in enumerate(beginnings) if not other.startswith(text.rstrip("\ufffd"))), -1)
        ties += margins[first] < NEAR_TIE
    return f"{equal} of {len(found)}" + (f" + {ties} near ties" if ties else "")


def _compare_likelihoods(expected: list[float], found: list[float]) -> str:
    differences = [abs(one - other) for one, other in zip(expected, found, strict=True)]
    equal = sum(difference < LIKELIHOOD_TOLERANCE for difference in differences)
    return f"{equal} of {len(found)}, at most {max(differences):.1e} apart"


def _compare_rows(prepared: set[str], found: list[tuple[list[int], list[int]]]) -> str:
    """Counts the rows that preparation has, too; it has no row that is longer than its longest."""
    longest = max(len(json.loads(row)[0]) for row in prepared)
    fitting = [row for row in found if len(row[0]) <= longest]
    equal = sum(_row_as_json(*row) in prepared for row in fitting)
    longer = len(found) - len(fitting)
    return f"{equal} of {len(fitting)}" + (f" ({longer} are longer than a row)" if longer else "")
