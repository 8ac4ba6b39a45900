"""Prepares fine-tuning data: conversations become rows in N buckets. The arguments are in `--help`."""

import os

from colossal_llama.dataset.arguments import parse
from colossal_llama.utils.errors import run_main


def main() -> None:
    """Parses, prepares, prints what was done."""
    settings = parse("sft")
    from colossal_llama.dataset.manifest import summary
    from colossal_llama.dataset.preparation import prepare

    manifest = prepare(settings)
    if manifest is not None:
        print(summary(manifest))


if __name__ == "__main__":
    # transformers then loads what a tokenizer needs and leaves torch alone: 1 s and 180 MB less
    os.environ.setdefault("USE_TORCH", "0")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    run_main(main)
