"""Counts of parts as tables for a terminal, and as a record for a JSON file."""

from colossal_llama.dataset.part_counts import PartCounts
from colossal_llama.utils.console import table

SHOWN_LINES = 20


def counts_as_tables(counts: PartCounts) -> str:
    """Formats categories, lengths and parts; the largest categories and the first parts."""
    lengths = [f"{counts.length_quantile(share):,}" for share in (0.1, 0.5, 0.9, 1)]
    quantiles = "lengths of segments, in tokens: 10 % up to {}, 50 % up to {}, 90 % up to {}, longest {}"
    return f"{_category_table(counts)}\n\n{quantiles.format(*lengths)}\n\n{_part_table(counts)}"


def _category_table(counts: PartCounts) -> str:
    tokens = counts.tokens.sum(axis=0)
    order = sorted(range(len(tokens)), key=lambda number: -tokens[number])
    own = order if len(order) <= SHOWN_LINES else order[: SHOWN_LINES - 1]
    lines = [_category_line(counts.categories[number], [number], counts) for number in own]
    if rest := order[len(own) :]:
        lines.append(_category_line(f"and {len(rest):,} others", rest, counts))
    if len(order) > 1:
        lines.append(_category_line("total", order, counts))
    return table(["category", "segments", "tokens", "share %", "tokens/segment"], lines)


def _category_line(name: str, categories: list[int], counts: PartCounts) -> list:
    segments, tokens = (int(values[:, categories].sum()) for values in (counts.segments, counts.tokens))
    share = round(100 * tokens / max(counts.total_tokens, 1), 2)
    return [name, segments, tokens, share, round(tokens / max(segments, 1), 1)]


def _part_table(counts: PartCounts) -> str:
    every = range(len(counts.parts))
    own = every if len(every) <= SHOWN_LINES else every[: SHOWN_LINES - 1]
    lines = [_part_line(counts.parts[part], slice(part, part + 1), counts) for part in own]
    if rest := every[len(own) :]:
        lines.append(_part_line(f"and {len(rest):,} more", slice(len(own), None), counts))
    lines.append(_part_line("all parts", slice(None), counts))
    return table(["part", "rows", "segments", "tokens", "fill %"], lines)


def _part_line(name: str, parts: slice, counts: PartCounts) -> list:
    numbers = [int(values[parts].sum()) for values in (counts.rows, counts.segments, counts.tokens)]
    return [name, *numbers, round(100 * counts.fill_of(parts), 2)]


def counts_as_record(counts: PartCounts) -> dict:
    """All numbers of a picture: of each category, and of each part a list over the categories."""
    shares = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1)
    by_category = zip(counts.categories, counts.segments.sum(axis=0).tolist(), counts.tokens.sum(axis=0).tolist(),
                      counts.log_lengths.tolist(), strict=True)  # fmt: skip
    return {
        "plot_data_version": 1,
        "max_length": counts.max_length,
        "rows": int(counts.rows.sum()),
        "segments": int(counts.segments.sum()),
        "tokens": counts.total_tokens,
        "fill": counts.fill_of(),
        "rows_by_fill": counts.fill.tolist(),
        "segment_length_quantiles": {str(share): counts.length_quantile(share) for share in shares},
        "segment_length_edges": counts.log_edges.tolist(),
        "categories": {
            name: {"segments": segments, "tokens": tokens, "segments_by_length": lengths}
            for name, segments, tokens, lengths in by_category
        },
        "parts": [
            {
                "name": name,
                "rows": int(counts.rows[part]),
                "fill": counts.fill_of(slice(part, part + 1)),
                "segments": counts.segments[part].tolist(),
                "tokens": counts.tokens[part].tolist(),
            }
            for part, name in enumerate(counts.parts)
        ],
    }
