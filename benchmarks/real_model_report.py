"""Report of benchmarks/real_model.py: Markdown tables, and curves as a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.real_model_runs import Point, at_text, first_at
from colossal_llama.evaluation.markdown_table import markdown_table
from colossal_llama.utils.figures import fonts_for, save_figure

FIGURE_TITLE = "loss of held-out text by FLOPs of training"
_BASE = "unexpanded"


def curves_of(results: Mapping[str, Any]) -> dict[str, list[Point]]:
    """Curves of the runs that are finished."""
    return {name: [Point(**point) for point in run["curve"]] for name, run in results["runs"].items()}


def comparisons(results: Mapping[str, Any]) -> dict[str, Any]:
    """Compares runs: where the unexpanded model's last loss is reached, losses at equal text."""
    curves = curves_of(results)
    if not (base := curves.get(_BASE)):
        return {}
    last = base[-1]
    found: dict[str, Any] = {}
    for name, curve in curves.items():
        places = {category: first_at(curve, category, loss) for category, loss in last.losses.items()}
        equal = at_text(curve, last.text_bytes)
        found[name] = {
            "reaches": {category: place and _spent(place, last) for category, place in places.items()},
            "at_equal_text": equal and dict(equal.losses),
        }
    return found


def _spent(place: Point, last: Point) -> dict[str, float]:
    return {
        "step": round(place.step),
        "flops_share": place.flops / last.flops,
        "text_share": place.text_bytes / last.text_bytes,
    }


def report(results: Mapping[str, Any]) -> str:
    """Formats all tables, as far as the results go."""
    texts = results.get("texts")
    parts = [_vocabularies(results), _runs(results)]
    if texts:
        categories = list(texts["held_bytes"])
        parts += [_losses(results, categories), _progress(results, categories), _answers(results)]
    return "\n\n".join(part for part in parts if part)


def _vocabularies(results: Mapping[str, Any]) -> str:
    data = results["data"]
    if not (source := data.get("source")):
        return ""
    categories = list(source["tokens_by_category"])
    rows = []
    for name, counts in data.items():
        saved = [_change(counts["tokens_by_category"][each], source["tokens_by_category"][each]) for each in categories]
        new_rows = results["tokenizers"].get(name, {}).get("new_rows", 0)
        rows.append(
            [name, f"{new_rows:,}", f"{counts['tokens']:,}", _change(counts["tokens"], source["tokens"]), *saved]
        )
    return markdown_table(["vocabulary", "new rows", "tokens of the same text", "all", *categories], rows)


def _runs(results: Mapping[str, Any]) -> str:
    header = ["run", "steps", "FLOPs", "tokens", "text", "tokens/s", "seconds"]
    rows = [
        [
            name,
            f"{run['steps']:,}",
            f"{run['flops']:.3g}",
            f"{run['tokens'] / 1e6:.4g} M",
            f"{run['text_bytes'] / 1e6:.4g} MB",
            f"{run['tokens_per_s']:,.0f}",
            f"{run['seconds']:.0f}",
        ]
        for name, run in results["runs"].items()
    ]
    return markdown_table(header, rows) if rows else ""


def _losses(results: Mapping[str, Any], categories: Sequence[str]) -> str:
    losses = results.get("evaluation", {})
    if not losses:
        return ""
    base = losses.get(_BASE)
    rows = []
    for name, of_model in losses.items():
        cells = [
            f"{of_model[each]:.4f}" + (f" ({_change(of_model[each], base[each])})" if base and name != _BASE else "")
            for each in categories
        ]
        rows.append([name, *cells])
    return markdown_table([f"nats per byte (against {_BASE})", *categories], rows)


def _progress(results: Mapping[str, Any], categories: Sequence[str]) -> str:
    found = results.get("comparisons", {})
    last = results["runs"][_BASE]["curve"][-1]["losses"] if _BASE in found else {}
    rows = []
    for name, of_run in found.items():
        if name != _BASE:
            reached = [_reached(of_run["reaches"][each]) for each in categories]
            rows.append([f"{name}: reaches {_BASE}'s last loss at (steps, FLOPs, text)", *reached])
            if equal := of_run["at_equal_text"]:
                changes = [f"{equal[each]:.4f} ({_change(equal[each], last[each])})" for each in categories]
                rows.append([f"{name}: at equal text, within its schedule", *changes])
    return markdown_table(["validation during training", *categories], rows) if rows else ""


def _reached(spent: Mapping[str, float] | None) -> str:
    if spent is None:
        return "–"
    return f"{spent['step']:,}, {spent['flops_share']:.0%}, {spent['text_share']:.0%}"


def _answers(results: Mapping[str, Any]) -> str:
    if not (answers := results.get("answers")):
        return ""
    models = list(answers[0]["answers"])
    rows = [[each["question"], *(each["answers"].get(model, "") for model in models)] for each in answers]
    return markdown_table(["prompt", *models], rows)


def _change(value: float, base: float) -> str:
    return f"{(value / base - 1) * 100:+.1f} %"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Plots the runs that are finished, if any."""
    if curves := {name: curve for name, curve in curves_of(results).items() if curve}:
        draw_curves(curves, list(results["texts"]["held_bytes"]), _BASE, path)


def draw_curves(curves: Mapping[str, list[Point]], categories: Sequence[str], base: str, path: Path) -> None:
    """Plots nats per byte by FLOPs: a panel for each category, a line for each run."""
    import matplotlib
    from matplotlib.figure import Figure

    fonts, _ = fonts_for([*categories, *curves])
    with matplotlib.rc_context({"font.family": fonts, "font.size": 9}):
        columns = min(2, len(categories))
        lines = -(-len(categories) // columns)
        figure = Figure(figsize=(5 * columns, 3.4 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for category, panel in zip(categories, panels, strict=False):
            for name, curve in curves.items():
                style = {"color": "black", "linewidth": 2} if name == base else {"marker": ".", "linewidth": 1.2}
                panel.plot([p.flops for p in curve], [p.losses[category] for p in curve], label=name, **style)
            panel.set(title=category, xlabel="FLOPs", ylabel="nats per byte")
            panel.grid(alpha=0.3)
        for panel in panels:
            panel.set_visible(False)
        figure.axes[0].legend()
        save_figure(figure, path, FIGURE_TITLE)
