"""The table of architectures in docs/models.md, made from `model.architectures`.

python -m tests.support.model_table --write
"""

import sys
from pathlib import Path

from colossal_llama.model.architectures import ARCHITECTURES, Architecture

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- the table of model/architectures.py -->", "<!-- end of the table -->"
_BIASES = {"configured": "by `attention_bias`", "query_key_value": "q, k, v", "none": "none"}
_HEADER = ("model_type", "class of transformers", "families", "biases", "norms of q, k", "window", "--tp, --pp, --sp")


def table() -> str:
    """The Markdown table."""
    rows = [_HEADER, ("---",) * len(_HEADER), *map(_row, ARCHITECTURES)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(each: Architecture) -> tuple[str, ...]:
    biases = _BIASES[each.attention_bias] + (", by `mlp_bias`" if each.mlp_bias else "")
    window = "`sliding_window`" if each.has_window else "none"
    parallel = "yes" if each.is_parallelised else "refused"
    norms = "yes" if each.has_qk_norm else "none"
    return f"`{each.model_type}`", f"`{each.causal_class}`", each.families, biases, norms, window, parallel


def with_table(document: str) -> str:
    """The document with the table of the code."""
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    if "--write" in sys.argv:
        DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    print(table())
