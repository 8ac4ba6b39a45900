"""Fuzzed conversations: each record is used or rejected, the answers to be trained are the targets.

A trial prepares 60 records. What becomes of each is known from how it was made: the targets of a
good one, the reason of a bad one, what is counted about it.
"""

import json
import random
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import datasets

from colossal_llama.dataset.conversation import TURN_END_TOKENS
from colossal_llama.dataset.prepare.open_tokenizer import OpenTokenizer
from colossal_llama.dataset.prepare.pipeline import prepare
from colossal_llama.dataset.prepare.verification import verify
from colossal_llama.utils.errors import UserError
from tests.campaigns.outcome import TRACEBACK, WHOLE, WRONG, Outcome
from tests.support.made_data import make_llama2, make_llama3
from tests.support.preparations import preparation

RECORDS = 60
WORDS = [
    "one",
    "two words",
    "</s>",
    "<|eot_id|>",
    "<s>",
    "Human: ",
    "Assistant:",
    "<|begin_of_text|>",
    "你好",
    "x y",
    "é",
    "3",
]
BLANKS = [" ", "\n\t", "\u3000", "\u200b", "\ufeff\n"]
ROLES = {
    "human": ("human", "user", "USER"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "bot"),
    "system": ("system", "developer"),
}
GIVEN_ROLES = [("bot", "assistant"), ("tool", "drop")]
EXCHANGES = [("instruction", "output"), ("prompt", "completion"), ("question", "answer"), ("query", "response")]
EXCHANGES += [("input", "target"), ("problem", "solution"), ("user", "assistant"), ("Prompt", "RESPONSE")]
SYSTEM_NAMES = ("system", "system_prompt", "systemPrompt", "system_message", "System")
UNTRAINED = ({"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}, {"masked": True}, {"loss_mask": "0"})
TRAINED = ({}, {}, {}, {"weight": 1}, {"train": True}, {"loss": None}, {"masked": False}, {"tool_calls": []})
UNSUPPORTED = (
    ("unsupported_weight", {"weight": 0.3}),
    ("unsupported_weight", {"loss": "some"}),
    ("unsupported_tool_calls", {"tool_calls": [{"id": "1"}]}),
    ("unsupported_function_call", {"function_call": {"name": "f"}}),
    ("unsupported_reasoning_content", {"reasoning_content": "since"}),
    ("unsupported_thinking", {"thinking": "since"}),
    ("unsupported_images", {"images": ["a.png"]}),
    ("unsupported_train_detail", {"train_detail": [{"begin_offset": 0}]}),
    ("unknown_form", {"weight": 1, "masked": True}),
)
OTHER_KEYS = ("id", "source", "lang", "url", "name", "score", "\x1b[31mred", "k" * 100)
TEMPLATE = """{{ bos_token }}{{ strftime_now('%Y') }}{% for m in messages %}{{ '\\n' + m.role + ':' + bos_token }}
{%- if m.role == 'assistant' %}{% generation %}{{ m.content + END }}{% endgeneration %}{% else %}{{ m.content + END }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '\\nassistant:' + bos_token }}{% endif %}"""


@dataclass
class Made:
    """A record, and what must become of it: the targets, or the reason of its rejection."""

    record: dict | str
    answers: list[str] = field(default_factory=list)
    reason: str | None = None
    notes: Counter = field(default_factory=Counter)


def run_trials(trials: int, seed: int, work_dir: Path) -> Iterator[Outcome]:
    """Yields the outcome of each trial: `WHOLE` if every record became what it had to."""
    opened = {
        2: OpenTokenizer(make_llama2(work_dir / "llama2")),
        3: OpenTokenizer(make_llama3(work_dir / "llama3", "<|eot_id|>")),
    }
    for version, end in TURN_END_TOKENS.items():
        (work_dir / f"{version}.jinja").write_text(TEMPLATE.replace("END", f"'{end}'"), encoding="utf-8")
    for number in range(trials):
        rng = random.Random(f"{seed}-{number}")
        version, with_template = rng.choice((2, 3)), rng.random() < 0.4
        kind = f"LLaMA-{version}, {'chat template' if with_template else 'built-in format'}"
        options = {"chat_template": str(work_dir / f"{version}.jinja")} if with_template else {"llama_version": version}
        options |= {"roles": GIVEN_ROLES, "system": rng.choice((None, None, "", "Be kind.", "你好 {{ x }}"))}
        begin = monotonic()
        made = [_made_record(rng) for _ in range(RECORDS)]
        try:
            problem = _problem(made, opened[version], work_dir, options | {"num_workers": rng.choice((1, 1, 1, 2))})
            result = WRONG if problem else WHOLE
        except Exception:
            problem, result = traceback.format_exc(), TRACEBACK
        yield Outcome(kind, result, f"seed {seed}, trial {number}", problem, monotonic() - begin)


# ----------------------------------------------------------------------------------------- records


def _made_record(rng: random.Random) -> Made:
    if rng.random() < 0.05:
        return Made(rng.choice(('{"messages": [', "[]", "3", '{"messages": 3}')), reason="any")
    made = Made({})
    turns = _turns(rng, made)
    are_plain = [role for role, _, _ in turns] == ["human", "assistant"] * (len(turns) // 2)
    form = rng.choice(("messages", "messages", "conversations", "exchange", "exchanges", "texts"))
    holders = [made.record]  # that may have further keys
    if form == "exchange" and are_plain and (len(turns) == 2 or not any(keys for *_, keys in turns)):
        _write_exchange(rng, made.record, turns)
    elif form == "exchanges" and are_plain:
        question, answer = rng.choice(EXCHANGES)
        pairs = zip(turns[::2], turns[1::2], strict=True)
        holders = [{question: asked, answer: answered, **keys} for (_, asked, _), (_, answered, keys) in pairs]
        made.record[rng.choice(("conversation", "turns", "messages"))] = holders
    elif form == "texts" and are_plain and not any(keys for *_, keys in turns):
        made.record[rng.choice(("data", "conversations"))] = [text for _, text, _ in turns]
    else:
        holders = _written_messages(rng, made, turns)
    if rng.random() < 0.3:
        _add_other_key(rng, made, rng.choice(holders))
    if turns and turns[0][0] != "system" and rng.random() < 0.2:
        made.record[rng.choice(SYSTEM_NAMES)] = _text(rng)
    if rng.random() < 0.3:
        _add_other_key(rng, made, made.record)
    if rng.random() < 0.1:
        reason, keys = rng.choice(UNSUPPORTED)
        target = rng.choice([made.record, rng.choice(holders)])
        if not any(name in target for name in ("weight", "train", "loss", "masked", "loss_mask", "tool_calls")):
            target.update(keys)
            # Which of several reasons is named is not held; a record with one of these is rejected.
            made.reason = reason if made.reason is None else "any"
    return made


def _write_exchange(rng: random.Random, record: dict, turns: list[tuple[str, str, dict]]) -> None:
    """Writes question and answer as two columns, and what comes before as the history."""
    *before, (_, question, _), (_, answer, keys) = turns
    names = rng.choice(EXCHANGES)
    record |= {names[0]: question, names[1]: answer, **keys}
    history = [[asked, answered] for (_, asked, _), (_, answered, _) in zip(before[::2], before[1::2], strict=True)]
    if history or rng.random() < 0.3:
        record["history"] = history


def _written_messages(rng: random.Random, made: Made, turns: list[tuple[str, str, dict]]) -> list[dict]:
    """Writes the turns as messages, among them some to be dropped; returns those that count."""
    names = rng.choice((("role", "content"), ("from", "content"), ("from", "value")))
    holders = [{names[0]: rng.choice(ROLES[role]), names[1]: _content(rng, text), **keys} for role, text, keys in turns]
    listed: list[dict] = list(holders)
    while rng.random() < 0.15:
        listed.insert(rng.randint(0, len(listed)), {names[0]: "tool", names[1]: rng.choice((None, "18 °C", {"a": 1}))})
        made.notes["dropped_messages.tool"] += 1
    made.record[rng.choice(("messages", "conversations", "dialogue"))] = listed
    return holders


def _content(rng: random.Random, text: str) -> str | list[dict]:
    """A text as it is, or in parts."""
    if rng.random() < 0.8:
        return text
    cut = rng.randint(0, len(text))
    return [{"type": "text", "text": piece} for piece in (text[:cut], text[cut:])]


def _turns(rng: random.Random, made: Made) -> list[tuple[str, str, dict]]:
    """Turns with the keys of each, of which some are odd; fills in what becomes of them."""
    roles = ["human", "assistant"] * rng.randint(1, 4)
    if rng.random() < 0.3:
        roles.insert(0, "system")
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        roles.insert(rng.randint(0, len(roles)), rng.choice(("human", "assistant")))
    if "system" in roles[1:]:
        made.reason = "misplaced_system"
    turns = []
    for role in roles:
        keys, text = {}, _text(rng)
        if role == "assistant":
            keys = dict(rng.choice(UNTRAINED if rng.random() < 0.15 else TRAINED))
        if rng.random() < 0.01:
            text, made.reason = rng.choice(BLANKS), "blank_message" if made.reason is None else "any"
        turns.append((role, text, keys))
    _expect(made, turns)
    return turns


def _expect(made: Made, turns: list[tuple[str, str, dict]]) -> None:
    """Applies the rules of turns, written down here a second time."""
    before = None
    for role, text, keys in turns:
        if role == before:
            made.notes["odd_turns.same_role_again"] += 1
        elif role == "assistant" and before != "human":
            made.notes["odd_turns.answer_without_a_question"] += 1
        if role == "assistant" and keys in UNTRAINED:
            made.notes["untrained_answers.marked_so"] += 1
        elif role == "assistant":
            made.answers.append(text)
        before = role
    if trailing := len(turns) - 1 - max(n for n, (role, _, _) in enumerate(turns) if role == "assistant"):
        made.notes["cut_turns.question_without_an_answer"] += trailing
        made.notes["documents_cut.question_without_an_answer"] += 1
    if not made.answers:
        made.reason = "no_trained_answer" if made.reason is None else "any"


def _add_other_key(rng: random.Random, made: Made, holder: dict) -> None:
    name = rng.choice(OTHER_KEYS)
    if name not in holder:
        holder[name] = rng.choice((7, "text", {"a": [1]}))
        made.notes["unread_keys"] += 1


def _text(rng: random.Random) -> str:
    return "".join(rng.choices(WORDS, k=rng.randint(1, 4)))


# --------------------------------------------------------------------------------------- comparison


def _problem(made: list[Made], opened: OpenTokenizer, work_dir: Path, options: dict) -> str:
    """Prepares the records; returns what is not as it must be, an empty string if all is."""
    (work_dir / "in").mkdir(exist_ok=True)
    lines = [item.record if isinstance(item.record, str) else json.dumps(item.record) for item in made]
    (work_dir / "in" / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    tokenizer_dir = Path(opened.tokenizer.name_or_path)
    common = {"on_bad_record": "skip", "overwrite": True, "num_spliced_dataset_bins": 2, "max_length": 4096}
    wanted = preparation("sft", (work_dir / "in",), tokenizer_dir, work_dir / "out", **(common | options))
    try:
        totals = prepare(wanted, opened)["totals"]
    except UserError as error:
        return f"refused: {error}"
    verify(work_dir / "out")
    good = [item for item in made if item.reason is None]
    rejected = [json.loads(line) for line in (work_dir / "out" / "rejected.jsonl").read_text().splitlines()]
    reasons = {line["line"] - 1: line["reason"] for line in rejected}
    expected = {number: item.reason for number, item in enumerate(made) if item.reason is not None}
    if reasons.keys() != expected.keys():
        number = min(reasons.keys() ^ expected.keys())
        return f"record {number}: rejected as {reasons.get(number)}, expected {expected.get(number)}: {lines[number]}"
    for number, reason in expected.items():
        if reason not in ("any", reasons[number]):
            return f"record {number}: rejected as {reasons[number]}, expected {reason}: {lines[number]}"
    if totals["records"] != len(made) or totals["documents"] != len(good):
        return f"{totals['records']} records, {totals['documents']} used; {len(made)} and {len(good)} expected"
    notes = sum((item.notes for item in good), Counter())
    counted = Counter({name: count for name, count in totals.items() if name in notes and name != "unread_keys"})
    counted["unread_keys"] = sum(count for name, count in totals.items() if name.startswith("unread_keys."))
    if +counted != +notes:
        return f"counted {dict(counted)}, expected {dict(notes)}"
    answers = Counter(tuple(item.answers) for item in good)
    trained = Counter(_trained(row, opened) for row in _rows(work_dir / "out"))
    return "" if trained == answers else f"trained {trained - answers}, expected {answers - trained}"


def _rows(directory: Path) -> Iterator[dict]:
    for part in sorted((directory / "arrow").iterdir()):
        yield from datasets.load_from_disk(str(part)).to_list()


def _trained(row: dict, opened: OpenTokenizer) -> tuple[str, ...]:
    """Texts of the target spans of a row, each without the token that ends it."""
    before = opened.tokenizer.encode("a", add_special_tokens=False)
    texts, span = [], []
    for token, label in zip([*row["input_ids"], -1], [*row["labels"], -100], strict=True):
        if label != -100:
            span.append(token)
        elif span:
            decoded = opened.tokenizer.decode([*before, *span[:-1]], clean_up_tokenization_spaces=False)
            texts.append(decoded[1:])
            span = []
    return tuple(texts)
