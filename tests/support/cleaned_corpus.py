"""A made-up cleaned corpus: its files, and the counts that belong to them."""

import random
from pathlib import Path

import orjson

from colossal_llama.cleaning.counts import ChunkCounts, CountsBuilder, add_counts
from colossal_llama.cleaning.document import Verdict

REASONS = ("length", "language", "near_duplicates", "decontamination")
CATEGORIES = ("诗词", "docs", "$5_$6")


def write_cleaned(directory: Path, documents: int = 400, chunks: int = 3) -> ChunkCounts:
    """Writes `documents/` and `dropped/` as the pipeline does; returns the counts of all chunks."""
    generator, builders = random.Random(5), [CountsBuilder() for _ in range(chunks)]
    lines: dict[str, list[bytes]] = {}
    for position in range(1, documents + 1):
        counts = builders[position * chunks // (documents + 1)]
        category = generator.choice(CATEGORIES)
        text = "".join(generator.choice("甲乙丙 丁abc\n") for _ in range(int(generator.lognormvariate(4, 1))))
        record = {"source": text[:5], "target": text[5:], "category": category}
        if generator.random() < 0.3:
            verdict = Verdict(generator.choice(REASONS), round(generator.random(), 3), 0.25)
            reason = {"reason": verdict.reason, "figure": verdict.figure, "limit": verdict.limit}
            entry = {**reason, "file": "in/a.jsonl", "position": position, **record}
            lines.setdefault(f"dropped/{verdict.reason}.jsonl", []).append(_line(entry))
            if verdict.reason == "decontamination":
                for question in range(2):
                    hit = {"question": question, "file": "in/a.jsonl", "position": position, "action": "drop"}
                    lines.setdefault("decontamination.jsonl", []).append(_line(hit))
            beginning = "\n".join(part for part in (text[:5], text[5:]) if part)
            counts.add_dropped(verdict, category, "in/a.jsonl", position, beginning, len(text))
        else:
            changes = {"mask.email": (2, 3)} if len(text) > 20 else {}
            written = {**record, "target": text[5:-3] if changes else text[5:]}
            lines.setdefault(f"documents/part-{position % 2:05d}.jsonl", []).append(_line(written))
            counts.add_kept(category, len(text), category, len(written["source"] + written["target"]), changes)
    builders[0].add_rejected("broken_json", 2)
    lines["rejected.jsonl"] = [_line({"file": "in/a.jsonl", "line": 9, "reason": "broken_json"})] * 2
    for name, listed in lines.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"".join(listed))
    return add_counts(builder.result() for builder in builders)


def _line(record: dict) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
