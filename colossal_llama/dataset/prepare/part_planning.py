"""Makes the plan of the parts or opens that of an earlier run, and shows it with `--plan_only`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from colossal_llama.dataset.mixture.plan_tables import bucket_tables, plan_summary
from colossal_llama.dataset.prepare.arguments import PrepareArguments
from colossal_llama.dataset.prepare.buckets import plan_parts, read_segments
from colossal_llama.dataset.prepare.cache import PartPlan, saved_plan, saved_plan_record
from colossal_llama.dataset.prepare.mixture_plan import plan_mixture, record_without_mixture
from colossal_llama.utils.atomic_io import write_json
from colossal_llama.utils.checked_json import with_checksum
from colossal_llama.utils.console import log_rank_zero

PLAN_VERSION = 1
PLAN_JSON, PLAN_PNG = "mixture_plan.json", "mixture_plan.png"
"""What `--plan_only` writes into the output directory."""


@dataclass(frozen=True)
class OpenPlan:
    """A plan of the parts.

    Attributes:
        plan: assigns segments to parts.
        record: of a mixture, see `plan_record`; None without one.
        is_new: False for a plan that an earlier run made.
    """

    plan: PartPlan
    record: dict | None
    is_new: bool


def category_names(facts: Sequence[dict]) -> tuple[str, ...]:
    """Names of all categories with a usable document, in the order of their numbers."""
    return tuple(sorted({name for fact in facts for name in fact["categories"]}))


def open_plan(arguments: PrepareArguments, facts: Sequence[dict]) -> OpenPlan:
    """Opens the plan, be it of an earlier version, as finished parts follow it; else makes it.

    Args:
        arguments: of the run.
        facts: of all chunks.

    Raises:
        UserError: the mixture does not fit the data.
    """
    plan_dir = arguments.output_dir / "cache" / "plan"
    plan, problem = saved_plan(plan_dir, np.cumsum([0, *(fact["tokens"] for fact in facts)]))
    if plan is not None:
        record = saved_plan_record(plan_dir)
        if (record is None) == (arguments.mixture.mixture is None):
            return OpenPlan(plan, record, is_new=False)
        problem = f"{plan_dir} is of another mixture"
    if problem:
        log_rank_zero(f"{problem}: made anew")
    plan, record = make_plan(arguments, facts)
    plan.save(plan_dir, record)
    return OpenPlan(plan, record, is_new=True)


def make_plan(arguments: PrepareArguments, facts: Sequence[dict]) -> tuple[PartPlan, dict | None]:
    """Makes a plan from the segments of all chunks; returns it with the record of its mixture.

    Raises:
        UserError: the mixture does not fit the data.
    """
    categories, num_bins = category_names(facts), arguments.rows.num_spliced_dataset_bins
    segments = read_segments(arguments.output_dir / "cache" / "chunks", facts, categories)
    if arguments.mixture.mixture is None:
        return plan_parts(segments, num_bins), None
    return plan_mixture(segments, categories, num_bins, arguments.rows.seed, arguments.mixture)


def show_plan(arguments: PrepareArguments, facts: Sequence[dict]) -> None:
    """Prints and draws the plan of these arguments; keeps neither it nor any part.

    Raises:
        UserError: the mixture does not fit the data.
    """
    plan, record = make_plan(arguments, facts)
    report_plan(arguments, record or record_without_mixture(plan, category_names(facts)))


def report_plan(arguments: PrepareArguments, record: dict) -> None:
    """Prints the record of a plan, writes it as JSON and draws it as a PNG."""
    from colossal_llama.dataset.mixture.plan_plot import draw_plan

    directory: Path = arguments.output_dir
    content = {"plan_version": PLAN_VERSION, **arguments.mixture.content(), "plan": record}
    write_json(directory / PLAN_JSON, with_checksum(content))
    draw_plan(record, directory / PLAN_PNG)
    print(bucket_tables(record), plan_summary(record), sep="\n\n")
    print(
        f"\nThis is the plan alone: {directory / PLAN_PNG} and {directory / PLAN_JSON} show it, and no part was "
        "written. The same command without --plan_only writes the parts. Nothing is tokenized again, also with another "
        "--mixture."
    )
