"""Comparison of a client's token ids and greedy answers with those of the suite's own inference."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.clients.models import TriedModel
from colossal_llama.dataset.conversation import Message
from colossal_llama.dataset.messages import ROLES
from colossal_llama.inference.arguments import Sampling
from colossal_llama.inference.generation import TextGenerator
from colossal_llama.inference.prompts import conversation_prompt_ids, open_template
from colossal_llama.model.pretrained import load_for_inference, stop_token_ids
from colossal_llama.tokenizer.batch_encoder import BatchEncoder
from colossal_llama.tokenizer.encoding import TextEncoder

NEAR_TIE = 0.02
"""Difference of two logits below which rounding decides: a client computes in another order."""


@dataclass(frozen=True)
class Reference:
    """Ids and answers that the suite's own inference makes, for one model.

    Attributes:
        ids: of each text, without control tokens.
        begin: BOS, which other programs put before them; empty for a tokenizer without one.
        chats: ids of the prompt of each conversation; empty for a base model.
        prompts: ids that are continued.
        greedy: generated ids of each prompt, with the token that ended the answer.
        margins: of each generated token, how far its logit is above the second.
    """

    ids: list[list[int]]
    begin: list[int]
    chats: list[list[int]]
    prompts: list[list[int]]
    greedy: list[list[int]]
    margins: list[list[float]]


def our_reference(
    model: TriedModel,
    texts: list[str],
    conversations: list[list[dict[str, str]]],
    prompts: int,
    max_new_tokens: int,
) -> Reference:
    """Runs the suite's own tokenizer, prompts and greedy decoding in fp32."""
    network, tokenizer = load_for_inference(model.directory, "float32", torch.device("cpu"))
    encoder = BatchEncoder(TextEncoder(tokenizer))
    flat, lengths = encoder.encode(texts, [True] * len(texts))
    ends = lengths.cumsum().tolist()
    ids = [flat[end - length : end].tolist() for end, length in zip(ends, lengths.tolist(), strict=True)]
    chats: list[list[int]] = []
    stops = stop_token_ids(network, tokenizer)
    if model.chats:
        template = open_template(tokenizer, None, None)
        chats = [
            conversation_prompt_ids(template, [Message(ROLES[m["role"]], m["content"]) for m in messages])
            for messages in conversations
        ]
        stops = stop_token_ids(network, tokenizer, template.turn_end_id)
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    step = max(1, len(texts) // prompts)
    given = chats[:prompts] if chats else [begin + row[:48] for row in ids[::step]][:prompts]
    sampling = Sampling(do_sample=False, max_new_tokens=max_new_tokens)
    greedy, margins = [], []
    for prompt in given:
        answer = TextGenerator(network, tokenizer).answer(prompt, stops, sampling).finish().token_ids
        greedy.append(answer)
        margins.append(_margins(network, prompt, answer))
    return Reference(ids, begin, chats, given, greedy, margins)


@torch.inference_mode()
def _margins(network: torch.nn.Module, prompt: list[int], answer: list[int]) -> list[float]:
    logits = network(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    best = logits.topk(2).values
    return (best[:, 0] - best[:, 1]).tolist()


def write_requests(
    directory: Path, texts: list[str], conversations: list[list[dict[str, str]]], prompts: list[list[int]]
) -> None:
    """Writes the files that a client reads: one JSON value a line."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, values in (("texts", texts), ("conversations", conversations), ("prompts", prompts)):
        lines = [json.dumps(value, ensure_ascii=False) for value in values]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def compare(reference: Reference, answer: dict) -> dict[str, str]:
    """Compares a client's answer: "equal of all" for each kind of ids that it gives."""
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
