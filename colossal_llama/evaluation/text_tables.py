"""Tables of bits per byte: by category, next to the base, and the documents that changed most."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from colossal_llama.evaluation.markdown_table import markdown_table
from colossal_llama.utils.atomic_io import write_json, write_text
from colossal_llama.utils.console import table
from colossal_llama.utils.output_file import output_file_problem

TEXTS_MD, TEXTS_JSON, TEXTS_PNG = "texts.md", "texts.json", "texts.png"
_FORMAT = "colossal_llama.evaluation.texts.1"
_MD_BEGINNING, _JSON_BEGINNING = b"# Bits per byte", b'{\n  "format": "colossal_llama.evaluation.texts.'
CHANGED_DOCUMENTS = 10
"""Documents that are listed in each direction."""
_LARGEST_EXPONENT = 1000
Results = Sequence[Mapping[str, Any]]
"""Lines of a model's texts.jsonl; those of all models are of the same documents."""


@dataclass(frozen=True)
class Estimate:
    """A ratio over documents, with its standard error.

    Attributes:
        value: sum of bits over sum of bytes.
        standard_error: of the value, over documents; None for a single one.
    """

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class ModelBits:
    """Bits of a model for the documents of a category.

    Attributes:
        tokens: of all documents.
        bits: of all documents.
        bits_per_byte: bits over bytes.
        perplexity_per_token: 2 to the power of bits per token; None where it is beyond any number.
        perplexity_per_word: the same by word.
        new_token_bits_per_byte: what the probability of added tokens costs where none follows; None
            where the model has none.
        lossy_documents: that the tokenizer cannot represent: their bits are too low.
        unknown_tokens: tokens that stand for what the vocabulary lacks.
    """

    tokens: int
    bits: float
    bits_per_byte: Estimate
    perplexity_per_token: float | None
    perplexity_per_word: float | None
    new_token_bits_per_byte: float | None
    lossy_documents: int
    unknown_tokens: int


@dataclass(frozen=True)
class TextRow:
    """A category, or all of them.

    Attributes:
        name: of the category.
        documents: number of them.
        bytes: of their texts.
        words: of their texts.
        models: by name.
        differences: bits per byte of the first model less those of another, by the other's name;
            the standard error is that of pairs.
    """

    name: str
    documents: int
    bytes: int
    words: int
    models: dict[str, ModelBits]
    differences: dict[str, Estimate] = field(default_factory=dict)


def make_rows(results: Mapping[str, Results]) -> tuple[list[TextRow], TextRow]:
    """Rows of the categories by name, and that of all documents.

    Args:
        results: of each model; the first is compared with the others.
    """
    first = next(iter(results.values()))
    places: dict[str, list[int]] = {}
    for place, result in enumerate(first):
        places.setdefault(result["category"], []).append(place)
    rows = [
        _row(name, {model: [lines[place] for place in places[name]] for model, lines in results.items()})
        for name in sorted(places)
    ]
    return rows, _row("all texts", results)


def _row(name: str, results: Mapping[str, Results]) -> TextRow:
    first, *others = results
    documents = results[first]
    sizes = [result["bytes"] for result in documents]
    words = sum(result["words"] for result in documents)
    models = {model: _model_bits(lines, sizes, words) for model, lines in results.items()}
    differences = {
        other: ratio(
            [after["bits"] - before["bits"] for after, before in zip(documents, results[other], strict=True)], sizes
        )
        for other in others
    }
    return TextRow(name, len(documents), sum(sizes), words, models, differences)


def _model_bits(results: Results, sizes: Sequence[int], words: int) -> ModelBits:
    tokens, bits = sum(result["tokens"] for result in results), math.fsum(result["bits"] for result in results)
    of_new = [result["new_token_bits"] for result in results if "new_token_bits" in result]
    return ModelBits(
        tokens,
        bits,
        ratio([result["bits"] for result in results], sizes),
        _power_of_2(bits, tokens),
        _power_of_2(bits, words),
        math.fsum(of_new) / sum(sizes) if of_new else None,
        sum(not result["is_lossless"] for result in results),
        sum(result["unknown_tokens"] for result in results),
    )


def _power_of_2(bits: float, count: int) -> float | None:
    return 2 ** (bits / count) if count and bits / count < _LARGEST_EXPONENT else None


def ratio(values: Sequence[float], sizes: Sequence[int]) -> Estimate:
    """Sum of values over sum of sizes; its standard error is that of a ratio of two means.

    >>> ratio([2.0, 4.0], [1, 2])
    Estimate(value=2.0, standard_error=0.0)
    """
    total, count = sum(sizes), len(sizes)
    value = math.fsum(values) / total
    if count < 2:
        return Estimate(value, None)
    squares = math.fsum((each - value * size) ** 2 for each, size in zip(values, sizes, strict=True))
    return Estimate(value, math.sqrt(squares * count / (count - 1)) / total)


def changed_most(after: Results, before: Results) -> dict[str, list[dict[str, Any]]]:
    """Documents whose bits per byte rose and fell most, at most ten each.

    Args:
        after: of the first model.
        before: of the other.
    """
    changes = []
    for new, old in zip(after, before, strict=True):
        document = {name: new[name] for name in ("file", "number", "category", "bytes", "beginning")}
        bits = {"before": old["bits"] / old["bytes"], "after": new["bits"] / new["bytes"]}
        changes.append({**document, **bits, "difference": bits["after"] - bits["before"]})
    changes.sort(key=lambda change: (change["difference"], change["file"], change["number"]))
    rose = [change for change in reversed(changes) if change["difference"] > 0]
    fell = [change for change in changes if change["difference"] < 0]
    return {"rose": rose[:CHANGED_DOCUMENTS], "fell": fell[:CHANGED_DOCUMENTS]}


def output_problems(directory: Path) -> Iterator[str]:
    """Problems of the tables' files: what another program has written is not replaced."""
    if not directory.is_dir():
        return
    for name, beginning in ((TEXTS_MD, _MD_BEGINNING), (TEXTS_JSON, _JSON_BEGINNING)):
        if problem := output_file_problem(directory / name, beginning):
            yield problem


def write_tables(
    directory: Path,
    results: Mapping[str, Results],
    models: Mapping[str, str],
    settings: Mapping[str, Any],
    problems: Sequence[str] = (),
    left_out: int = 0,
) -> str:
    """Writes texts.md and texts.json; returns the table for the terminal.

    Args:
        directory: OUT.
        results: of each model by name.
        models: path of each by name.
        settings: of the evaluation.
        problems: records and files that could not be read.
        left_out: number of documents beyond `--text_limit`.
    """
    rows, total = make_rows(results)
    first, *others = results
    changes = {other: changed_most(results[first], results[other]) for other in others}
    facts = _facts(rows, total, settings, len(problems), left_out)
    write_text(directory / TEXTS_MD, _markdown(rows, total, facts, changes, first, problems))
    content = {
        "format": _FORMAT,
        "models": dict(models),
        "settings": dict(settings),
        "categories": [asdict(row) for row in rows],
        "total": asdict(total),
        "changed_most": changes,
        "problems": list(problems),
        "documents_beyond_limit": left_out,
    }
    write_json(directory / TEXTS_JSON, content)
    header, lines = _bits_table([*rows, total], list(results))
    return "\n".join((table(header, lines), "", *facts))


def _bits_table(rows: Sequence[TextRow], models: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    header = ["category", "documents", "bytes", *models, *(f"− {other}" for other in models[1:])]
    lines = [
        [
            row.name,
            f"{row.documents:,}",
            f"{row.bytes:,}",
            *(shown(row.models[model].bits_per_byte) for model in models),
            *(shown(row.differences[other], "+") for other in models[1:]),
        ]
        for row in rows
    ]
    return header, lines


def _details_table(rows: Sequence[TextRow], models: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    header = ["category", "model", "tokens", "bytes/token", "perplexity/token", "perplexity/word"]
    has_new = any(row.models[model].new_token_bits_per_byte is not None for row in rows for model in models)
    lines = []
    for row in rows:
        for model in models:
            of_model = row.models[model]
            perplexities = (of_model.perplexity_per_token, of_model.perplexity_per_word)
            cells = [row.name, model, f"{of_model.tokens:,}", f"{row.bytes / max(1, of_model.tokens):.3f}"]
            cells += ["–" if value is None else f"{value:,.4g}" for value in perplexities]
            of_new = of_model.new_token_bits_per_byte
            lines.append([*cells, *(["–" if of_new is None else f"{of_new:.5f}"] if has_new else [])])
    return [*header, *(["bits/byte for new tokens"] if has_new else [])], lines


def shown(estimate: Estimate, sign: str = "") -> str:
    """An estimate with its standard error, as a table shows it."""
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.4f}"
    return f"{estimate.value:{sign}.4f}{error}"


def _facts(
    rows: Sequence[TextRow], total: TextRow, settings: Mapping[str, Any], problems: int, left_out: int
) -> list[str]:
    """Sentences that a reader of the tables needs."""
    facts = [
        f"settings: {', '.join(f'{name} {value}' for name, value in settings.items() if value is not None)}",
        "bits per byte: -log2 of the probability of all tokens over the bytes of the texts in UTF-8, lower is better; "
        "± standard error over documents",
    ]
    if total.differences:
        first = next(iter(total.models))
        facts.append(f"difference: {first} less the other model, negative is better; ± standard error of pairs")
    facts += [f"{row.name}: {fact}" for row in rows for fact in _losses(row)]
    if any(bits.new_token_bits_per_byte is not None for bits in total.models.values()):
        facts.append(
            "bits/byte for new tokens: what the probability of added tokens costs where none of them follows; without "
            "it an expanded model has the base's bits on texts without new pieces"
        )
    if problems:
        facts.append(f"{problems:,} records or files could not be read, and are left out")
    if left_out:
        facts.append(f"{left_out:,} more documents are left out by --text_limit, a random choice")
    return facts


def _losses(row: TextRow) -> Iterator[str]:
    for model, bits in row.models.items():
        if bits.lossy_documents:
            unknown = f" ({bits.unknown_tokens:,} unknown tokens)" if bits.unknown_tokens else ""
            yield (
                f"the tokenizer of {model} loses characters of {bits.lossy_documents:,} of {row.documents:,} "
                f"documents{unknown}: its bits per byte are too low there, do not compare them"
            )


def _markdown(
    rows: Sequence[TextRow],
    total: TextRow,
    facts: Iterable[str],
    changes: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    first: str,
    problems: Sequence[str],
) -> str:
    models = list(total.models)
    parts = ["# Bits per byte", "", *(f"- {fact}" for fact in facts), ""]
    parts += [markdown_table(*_bits_table([*rows, total], models)), "", "## Tokens and perplexity", ""]
    parts += [markdown_table(*_details_table([*rows, total], models)), ""]
    for other, directions in changes.items():
        for direction, documents in directions.items():
            if documents:
                parts += [f"## Documents whose bits per byte {direction} most from {other} to {first}", ""]
                parts += [_changes_table(documents), ""]
    if problems:
        parts += ["## Not read", "", *(f"- {problem}" for problem in problems), ""]
    return "\n".join(parts)


def _changes_table(documents: Sequence[Mapping[str, Any]]) -> str:
    header = ["before", "after", "difference", "bytes", "category", "document", "beginning"]
    lines = [
        [
            f"{each['before']:.4f}",
            f"{each['after']:.4f}",
            f"{each['difference']:+.4f}",
            f"{each['bytes']:,}",
            each["category"],
            f"{each['file']}:{each['number']}",
            each["beginning"],
        ]
        for each in documents
    ]
    return markdown_table(header, lines)
