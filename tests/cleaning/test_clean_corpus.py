"""The command `clean` on small corpora: what users do with it, from raw files to verification."""

import json
import random
from pathlib import Path

from colossal_llama.cleaning.clean_corpus import parse_arguments
from colossal_llama.cleaning.pipeline import clean
from colossal_llama.cleaning.verification import verify

ACROSS_DOCUMENTS = ("boilerplate", "exact_duplicates", "duplicate_paragraphs", "near_duplicates", "decontamination")
SUBJECTS = [
    "ferry",
    "captain",
    "teacher",
    "gardener",
    "lighthouse",
    "village",
    "river",
    "market",
    "mountain",
    "harbour",
]
VERBS = ["watches", "paints", "remembers", "repairs", "describes", "crosses", "visits", "follows", "measures", "leaves"]
MANNERS = ["slowly", "today", "again", "quietly", "together", "alone", "tomorrow", "gladly", "twice", "early"]


def document(number: int, sentences: int = 12) -> str:
    """A made-up text of its own."""
    generator = random.Random(number)
    words = [[generator.choice(of) for of in (SUBJECTS, VERBS, SUBJECTS, MANNERS)] for _ in range(sentences)]
    return "\n\n".join(f"The {who} number {number} {does} the {what} {how}." for who, does, what, how in words)


def write_corpus(directory: Path, texts: list[str]) -> Path:
    """Writes texts as the records of one file."""
    directory.mkdir(exist_ok=True)
    lines = [json.dumps({"source": "", "target": text, "category": "made"}) for text in texts]
    (directory / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def run_clean(raw: Path, output: Path, *words: str) -> dict:
    """Runs the command; returns the report."""
    command = ["--data_input_dirs", str(raw), "--output_dir", str(output), "--num_workers", "1", *words]
    report = clean(parse_arguments(command))
    assert report is not None
    verify(output)
    return report


def test_every_rule_across_documents_can_be_switched_off(tmp_path):
    raw = write_corpus(tmp_path / "raw", [document(1), document(1), document(2)])
    report = run_clean(raw, tmp_path / "none", "--off", "ngram_repetition", *ACROSS_DOCUMENTS)
    assert report["totals"]["kept"]["documents"] == 3
    for rule in ACROSS_DOCUMENTS:
        others = [other for other in ACROSS_DOCUMENTS if other != rule]
        run_clean(raw, tmp_path / rule, "--off", "ngram_repetition", *others)


def test_code_blocks_stay_whole_where_other_documents_have_their_paragraphs(tmp_path):
    code = "```bash\necho one and two and three and four and five\n\necho six and seven and eight and nine and ten\n```"
    shared = f"This paragraph is in both documents, and long enough to be compared: {'word after word, ' * 9}the end."
    texts = [f"{document(number)}\n\n{shared}\n\n{code}" for number in (1, 2)]
    run_clean(write_corpus(tmp_path / "raw", texts), tmp_path / "out", "--off", "near_duplicates", "ngram_repetition")
    lines = (tmp_path / "out" / "documents" / "part-00000.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = (json.loads(line)["target"] for line in lines)
    assert shared in first
    assert shared not in second
    assert code in first
    assert code in second


def test_dropped_conversations_are_verified_with_their_samples(tmp_path):
    messages = [[("human", "Who paints?"), ("assistant", "x" * 3000)], [("human", ""), ("assistant", "y" * 2000)]]
    raw = tmp_path / "raw"
    raw.mkdir()
    records = [
        {"messages": [{"from": role, "content": text} for role, text in turns], "category": "聊天"}
        for turns in messages
    ]
    (raw / "a.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
    report = run_clean(raw, tmp_path / "out", "--preset", "conversations", "--set", "length.min_words=100")
    assert report["totals"]["dropped"]["documents"] + sum(report["totals"]["rejected"].values()) == 2
