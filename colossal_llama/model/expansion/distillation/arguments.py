"""Options of `init_model.py --init_method distilled`; imports no torch."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.readers.formats import DESCRIPTION
from colossal_llama.readers.input_paths import GatherPaths, input_paths
from colossal_llama.utils.arguments import from_namespace, ineffective_options, option
from colossal_llama.utils.cli import MAX_SEED, number_in_range

DISTILLED = "distilled"
"""The `--init_method` that these options belong to."""
TOKENS_PER_NEW_ROW = 1000
"""Tokens of the default budget: 18,538 rows then see about 18.5 M tokens."""


@dataclass(frozen=True, kw_only=True)
class DistillationArguments:
    """Options of the distillation."""

    distill_data: tuple[Path | str, ...] = option(
        (),
        nargs="+",
        action=GatherPaths,
        type=input_paths,
        metavar="PATH",
        help="texts in which the new tokens occur, and texts of the languages that the model has to keep: files and "
        f"directories, also several by commas; {DESCRIPTION}",
    )
    distill_tokens: int | None = option(
        type=number_in_range(int, minimum=1),
        only_with="distill_data",
        metavar="TOKENS",
        help=f"tokens to train on, in several passes where the texts have fewer (default: {TOKENS_PER_NEW_ROW:,} for "
        "each new row)",
    )
    distill_lr: float = option(
        0.07,
        type=number_in_range(float, above=0),
        only_with="distill_data",
        help="largest learning rate (Adam) over the root mean square of the source's embedding values, so that it "
        "suits every model; it rises linearly at first, then falls linearly to 0",
    )
    distill_hidden_weight: float = option(
        5.0,
        type=number_in_range(float, minimum=0),
        only_with="distill_data",
        metavar="WEIGHT",
        help="weight of the hidden states' distance to the source model's, next to the cross-entropy in nats; it helps "
        "where texts are few; 0 leaves the source model out, which takes half the time",
    )
    distill_batch_tokens: int = option(
        16384,
        type=number_in_range(int, minimum=1),
        only_with="distill_data",
        metavar="TOKENS",
        help="tokens of a step, padding included; fewer take less memory",
    )
    distill_seed: int = option(
        0, type=number_in_range(int, minimum=0, maximum=MAX_SEED), only_with="distill_data", help="chooses the texts"
    )
    distill_device: str | None = option(
        only_with="distill_data", help="cpu, cuda:0, … (default: a GPU, or cpu where there is none)"
    )
    distill_dtype: str | None = option(
        choices=("fp32", "bf16"),
        only_with="distill_data",
        help="of the frozen weights and the computation; trained rows are fp32 (default: bf16 on a GPU, fp32 on a CPU)",
    )


def distillation_problems(namespace: Namespace) -> Iterator[str]:
    """Contradictions between the method and these options."""
    given = from_namespace(DistillationArguments, namespace)
    is_distilled = namespace.init_method == DISTILLED
    if is_distilled and not given.distill_data:
        yield (
            "--init_method distilled needs --distill_data: texts in which the new tokens occur, those from which their "
            "pieces were learned and some of the languages that the model has to keep"
        )
    if is_distilled:
        return
    if given.distill_data:
        yield "--distill_data has no effect without --init_method distilled: add that, or leave it out"
    for name, needed in ineffective_options(given):
        yield f"--{name} has no effect without --{needed} and --init_method distilled: add them, or leave it out"
