"""Plans the parts of a mixture: which documents, how often, and in which part.

A document that is chosen several times has its segments in the plan several times; one that is left
out has none. Nothing else in a plan differs from one without a mixture.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from colossal_llama.dataset.mixture.mixture_file import Mixture
from colossal_llama.dataset.mixture.plan_record import CategoryFacts, ChosenFacts, plan_record
from colossal_llama.dataset.mixture.selection import choose_documents
from colossal_llama.dataset.mixture.targets import Targets, group_names, mixture_targets
from colossal_llama.dataset.prepare.arguments import MixtureArguments
from colossal_llama.dataset.prepare.buckets import Segments
from colossal_llama.dataset.prepare.cache import PartPlan
from colossal_llama.utils.errors import UserError


def plan_mixture(
    segments: Segments, categories: Sequence[str], num_bins: int, seed: int, arguments: MixtureArguments
) -> tuple[PartPlan, dict]:
    """Chooses documents for every part; returns the plan and its record.

    Args:
        segments: of all chunks.
        categories: names of all categories, by number.
        num_bins: number of parts.
        seed: of the preparation.
        arguments: with a mixture.

    Raises:
        UserError: the mixture does not fit the data.
    """
    assert arguments.mixture is not None, "plan_parts plans without one"
    first_segments = np.flatnonzero(segments.is_first)
    lengths = np.add.reduceat(segments.lengths, first_segments, dtype=np.int64)
    document_categories = segments.categories[first_segments]
    facts = _category_facts(categories, arguments.mixture, document_categories, lengths)
    available = dict(zip(categories, facts.tokens.tolist(), strict=True))
    targets = mixture_targets(arguments.mixture, available, num_bins, arguments.total_tokens, arguments.max_repeats)
    documents, bins = _choose(lengths, document_categories, targets, seed, categories)
    if not len(documents):
        raise UserError(
            f"--mixture: of {sum(targets.tokens):,} tokens no category gets as many as half a document: ask for more"
        )
    plan = _plan_of(segments, first_segments, documents, bins, num_bins)
    times = np.bincount(documents, minlength=len(lengths))
    chosen = ChosenFacts(
        bucket_tokens(plan, len(categories)),
        _sums(document_categories, times, len(categories)),
        _sums(document_categories, times == 0, len(categories)),
        _sums(document_categories, lengths * (times == 0), len(categories)),
    )
    return plan, plan_record(facts, chosen, targets)


def record_without_mixture(plan: PartPlan, categories: Sequence[str]) -> dict:
    """Record of a plan in which every document is once."""
    # The segments of a document follow each other by position.
    order = np.argsort(plan.starts, kind="stable")
    firsts = np.flatnonzero(plan.first_of_document[order])
    lengths = np.add.reduceat(plan.lengths[order], firsts, dtype=np.int64)
    facts = _category_facts(categories, Mixture({}), plan.categories[order][firsts], lengths)
    nothing = np.zeros(len(categories), np.int64)
    chosen = ChosenFacts(bucket_tokens(plan, len(categories)), facts.documents, nothing, nothing)
    return plan_record(facts, chosen, None)


def bucket_tokens(plan: PartPlan, num_categories: int) -> np.ndarray:
    """Tokens of every category in every part: int64 (categories, parts)."""
    parts = [slice(*bounds) for bounds in pairwise(plan.part_starts.tolist())]
    sums = [_sums(plan.categories[part], plan.lengths[part], num_categories) for part in parts]
    return np.stack(sums, axis=1)


def _sums(cells: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Sums of whole numbers by cell: int64 (count,), exact below 2**53."""
    return np.bincount(cells, weights=values, minlength=count).astype(np.int64)


def _category_facts(
    categories: Sequence[str], mixture: Mixture, document_categories: np.ndarray, lengths: np.ndarray
) -> CategoryFacts:
    count = len(categories)
    longest = np.zeros(count, np.int64)
    np.maximum.at(longest, document_categories, lengths)
    documents = np.bincount(document_categories, minlength=count)
    tokens = _sums(document_categories, lengths, count)
    return CategoryFacts(categories, group_names(mixture, categories), documents, tokens, longest)


def _choose(
    lengths: np.ndarray, document_categories: np.ndarray, targets: Targets, seed: int, categories: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the chosen documents, and the part of each."""
    by_category = np.argsort(document_categories, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(document_categories, minlength=len(categories)))])
    documents, bins = [], []
    for number, name in enumerate(categories):
        members = by_category[bounds[number] : bounds[number + 1]]
        selection = choose_documents(lengths[members], targets.bucket_ends(number), seed, name)
        documents.append(members[selection.documents])
        bins.append(np.repeat(np.arange(len(selection.bucket_counts), dtype=np.int32), selection.bucket_counts))
    return np.concatenate(documents), np.concatenate(bins)


def _plan_of(
    segments: Segments, first_segments: np.ndarray, documents: np.ndarray, bins: np.ndarray, num_bins: int
) -> PartPlan:
    """Plan with the segments of the chosen documents; a part's are ordered as `plan_parts` does."""
    counts = np.diff(first_segments, append=len(segments.lengths))[documents]
    positions = np.repeat(first_segments[documents] - (np.cumsum(counts) - counts), counts)
    positions += np.arange(len(positions))
    bins = np.repeat(bins, counts)
    order = np.lexsort((positions, segments.lengths[positions], segments.categories[positions], bins))
    positions, bins = positions[order], bins[order]
    del order
    return PartPlan(
        starts=segments.starts[positions],
        lengths=segments.lengths[positions],
        categories=segments.categories[positions],
        first_of_document=segments.is_first[positions],
        part_starts=np.searchsorted(bins, np.arange(num_bins + 1)),
        chunk_starts=segments.chunk_starts,
    )
