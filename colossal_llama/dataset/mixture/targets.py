"""Turns a mixture and the tokens that there are into tokens of every category and bucket.

A mixture is a list of items: a category, a group with an amount, or the rest. The categories of an
item share its tokens in proportion of what they have. What has no amount takes what is left:

    english 25 %, questions 2 epochs of 1M tokens, articles have 5M and poems 1M, no --total_tokens:
    total (2M + 6M) / (1 - 25 %) = 10.7M: english 2.7M, questions 2M, articles 5M, poems 1M
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from colossal_llama.dataset.mixture.amounts import MOST_TOKENS, percent, short_number
from colossal_llama.dataset.mixture.mixture_file import REST, Amount, Mixture
from colossal_llama.utils.errors import UserError, truncate_problems
from colossal_llama.utils.suggestion import did_you_mean

SHOWN_NAMES = 8
_ZERO, _ONE = Fraction(0), Fraction(1)


@dataclass(frozen=True)
class Targets:
    """Tokens that the categories are to have.

    Attributes:
        tokens: of each category.
        bucket_shares: (categories, buckets) share of each category in the tokens of each bucket.
        decided_by: what decided the number of all tokens.
        joint_amounts: numbers of the categories that have one amount together, by its name.
    """

    tokens: list[int]
    bucket_shares: np.ndarray
    decided_by: str
    joint_amounts: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def bucket_ends(self, category: int) -> np.ndarray:
        """Tokens of a category in all buckets up to and with each: int64 (buckets,)."""
        reached = np.cumsum(self.bucket_shares[category])
        if not self.tokens[category] or not reached[-1]:
            return np.zeros(len(reached), np.int64)
        ends = np.rint(reached / reached[-1] * self.tokens[category]).astype(np.int64)
        ends[-1] = self.tokens[category]
        return ends


@dataclass(frozen=True)
class _Item:
    """Categories with one amount together; without an amount they take what is left."""

    name: str
    members: list[int]
    available: int
    amount: Amount


def mixture_targets(
    mixture: Mixture,
    available: dict[str, int],
    num_buckets: int,
    total_tokens: int | None,
    max_repeats: Fraction,
) -> Targets:
    """Decides the tokens of every category in every bucket.

    Args:
        mixture: that the file asks for.
        available: tokens that each category of the data has, in the order of their numbers.
        num_buckets: number of buckets, which have the same number of tokens.
        total_tokens: of all buckets together; None: as the amounts and what there is decide.
        max_repeats: most epochs of a category.

    Raises:
        UserError: the mixture does not fit the data, or repeats a category too often.
    """
    if problems := list(_name_problems(mixture, available)):
        raise UserError(truncate_problems(problems))
    items, open_item = _items(mixture, available)
    late_weights = _late_weights(mixture, num_buckets)
    mean_late = sum(late_weights, start=_ZERO) / num_buckets
    total, decided_by = _total(items, open_item, total_tokens, mean_late)
    if not 0 < total <= MOST_TOKENS:
        raise UserError(f"--mixture: it asks for {float(total):,.0f} tokens in all: give other amounts")
    shares = _shares(items, open_item, total, mean_late)
    tokens = [_ZERO] * len(available)
    bucket_shares = np.zeros((len(available), num_buckets))
    weights = np.array([float(weight) for weight in late_weights])
    counts = list(available.values())
    for item, (first, last) in shares:
        of_item = total * (first * (1 - mean_late) + last * mean_late)
        for member in item.members:
            part = Fraction(counts[member], item.available)
            tokens[member] = of_item * part
            bucket_shares[member] = float(part) * (float(first) * (1 - weights) + float(last) * weights)
    is_scalable = total_tokens is not None and not any(_fixed_tokens(item) for item in items)
    _refuse_repeats(dict(zip(available, tokens, strict=True)), available, max_repeats, total if is_scalable else None)
    joint = {item.name: item.members for item, _ in shares if len(item.members) > 1}
    return Targets(_whole(tokens), bucket_shares, decided_by, joint)


def _whole(counts: Sequence[Fraction]) -> list[int]:
    """Rounds numbers of tokens so that their sum stays; whole ones are kept."""
    whole = [int(count) for count in counts]
    left = round(sum(counts)) - sum(whole)
    for number in sorted(range(len(counts)), key=lambda number: whole[number] - counts[number])[:left]:
        whole[number] += 1
    return whole


# ------------------------------------------------------------------------------------------ names


def _name_problems(mixture: Mixture, available: dict[str, int]) -> Iterator[str]:
    named = mixture.categories.keys() - {REST}
    if missing := sorted(named - available.keys()):
        names = [f"{name!r}{did_you_mean(name, available)}" for name in missing]
        yield (
            f"--mixture: the data have no usable document of {', '.join(truncate_problems(names, SHOWN_NAMES))} (they "
            f"have {_listed(sorted(available))})"
        )
    unnamed = sorted(available.keys() - named)
    if unnamed and REST not in mixture.categories:
        yield (
            f"--mixture: the file does not name {_listed(unnamed)}: add a line for each, or {REST!r}: {{}} for all "
            f"others ({{epochs: 0}} leaves them out)"
        )
    if REST in mixture.categories and not unnamed:
        yield f"--mixture: {REST!r} stands for no category, since the file names all that the data have: leave it out"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(truncate_problems([repr(name) for name in names], SHOWN_NAMES))


def group_names(mixture: Mixture, categories: Sequence[str]) -> list[str | None]:
    """Group of each category; None for one without a group."""
    rest = mixture.group_of.get(REST)
    return [mixture.group_of.get(name, None if name in mixture.categories else rest) for name in categories]


def _items(mixture: Mixture, available: dict[str, int]) -> tuple[list[_Item], _Item | None]:
    """Items with an amount, and the one of all categories that take what is left, if any."""
    counts = list(available.values())
    groups = group_names(mixture, list(available))
    amounts: dict[str, Amount] = {}
    members: dict[str, list[int]] = {}
    left: list[int] = []
    for number, (name, group) in enumerate(zip(available, groups, strict=True)):
        entry = name if name in mixture.categories else REST
        if group is not None and group in mixture.groups:
            label, amount = f"group {group!r}", mixture.groups[group]
        else:
            label, amount = f"category {entry!r}", mixture.categories[entry]
        if not amount.is_given:
            left.append(number)
            continue
        amounts[label] = amount
        members.setdefault(label, []).append(number)
    items = [
        _Item(label, chosen, sum(counts[number] for number in chosen), amounts[label])
        for label, chosen in members.items()
    ]
    return items, _Item("the others", left, sum(counts[number] for number in left), Amount()) if left else None


# -------------------------------------------------------------------------------- tokens and shares


def _late_weights(mixture: Mixture, num_buckets: int) -> list[Fraction]:
    """Weight of the late shares in each bucket, from 0 to 1.

    Raises:
        UserError: `late_from` is beyond the beginning of the last bucket.
    """
    if mixture.late_from is not None:
        weights = [Fraction(int(Fraction(bucket, num_buckets) >= mixture.late_from)) for bucket in range(num_buckets)]
        if not any(weights):
            last = percent(Fraction(num_buckets - 1, num_buckets))
            raise UserError(
                f"--mixture: late_from {percent(mixture.late_from)} is beyond the beginning of the last of "
                f"{num_buckets} buckets ({last}): give an earlier one, or more --num_spliced_dataset_bins"
            )
        return weights
    if num_buckets == 1:
        return [Fraction(1, 2)]
    return [Fraction(bucket, num_buckets - 1) for bucket in range(num_buckets)]


def _fixed_tokens(item: _Item) -> Fraction:
    """Tokens of an item whose amount is in tokens or epochs; 0 for a share."""
    if item.amount.tokens is not None:
        return Fraction(item.amount.tokens)
    return item.available * (item.amount.epochs or _ZERO)


def _mean_share(item: _Item, mean_late: Fraction) -> Fraction:
    """Share of an item in all tokens; 0 for an amount in tokens or epochs."""
    if item.amount.share is None:
        return _ZERO
    late = item.amount.share if item.amount.late is None else item.amount.late
    return item.amount.share * (1 - mean_late) + late * mean_late


def _total(
    items: Sequence[_Item], open_item: _Item | None, total_tokens: int | None, mean_late: Fraction
) -> tuple[Fraction, str]:
    """The number of all tokens, and what decided it.

    Raises:
        UserError: the amounts do not add up.
    """
    shares = sum((_mean_share(item, mean_late) for item in items), start=_ZERO)
    fixed = sum((_fixed_tokens(item) for item in items), start=_ZERO)
    if total_tokens is not None:
        taken = shares + fixed / total_tokens
        numbers = f" ({short_number(fixed)} tokens are {percent(fixed / total_tokens)})" if fixed else ""
        sums = f"{percent(taken)} of --total_tokens {total_tokens:,}{numbers}"
        if taken > 1 or (taken == 1 and open_item):
            nothing = ", and leave nothing for the other categories" if taken == 1 else ""
            raise UserError(f"--mixture: the amounts add up to {sums}{nothing}: give less, or more --total_tokens")
        if taken < 1 and not open_item:
            raise UserError(
                f"--mixture: the amounts add up to {sums}, not 100%: leave --total_tokens out, or one "
                "amount, which takes the rest"
            )
        return Fraction(total_tokens), "--total_tokens"
    if fixed or open_item:
        if shares >= 1:
            raise UserError(f"--mixture: the shares add up to {percent(shares)}, and leave nothing for other amounts")
        reason = "all documents of the categories without an amount" if open_item else "the tokens and epochs asked for"
        return (fixed + (open_item.available if open_item else 0)) / (1 - shares), reason
    if shares != 1:
        raise UserError(f"--mixture: the shares add up to {percent(shares)}, not 100%")
    limits = [(item.available / share, item) for item in items if (share := _mean_share(item, mean_late))]
    total, item = min(limits, key=lambda limit: limit[0])
    return total, f"as many as there are without repeating one: {item.name} is used up first"


def _shares(
    items: Sequence[_Item], open_item: _Item | None, total: Fraction, mean_late: Fraction
) -> list[tuple[_Item, tuple[Fraction, Fraction]]]:
    """Share of every item in the first and in the last bucket.

    Raises:
        UserError: those of a bucket do not add up, or one would be negative.
    """
    found = [(item, _first_and_last(item, total, mean_late)) for item in items]
    sums = [sum((shares[end] for _, shares in found), start=_ZERO) for end in (0, 1)]
    if open_item is not None:
        found.append((open_item, (_ONE - sums[0], _ONE - sums[1])))
    for total_share, bucket in zip(sums, ("first", "last"), strict=True):
        if total_share > 1 or (open_item is None and total_share != 1):
            raise UserError(
                f"--mixture: the shares of the {bucket} bucket add up to {percent(total_share)}, not 100%: where one "
                "category has late, another must give way: by a late of its own, or without an amount, so that it "
                "takes what is left"
            )
    return found


def _first_and_last(item: _Item, total: Fraction, mean_late: Fraction) -> tuple[Fraction, Fraction]:
    amount = item.amount
    if amount.share is not None:
        return amount.share, amount.share if amount.late is None else amount.late
    share = _fixed_tokens(item) / total
    if amount.late is None:
        return share, share
    first = (share - amount.late * mean_late) / (1 - mean_late)
    if first < 0:
        raise UserError(
            f"--mixture: {item.name} has {percent(share)} of all tokens, too few for late {percent(amount.late)}: at "
            f"most {percent(share / mean_late)}, with none in the first bucket"
        )
    return first, amount.late


def _refuse_repeats(
    tokens: dict[str, Fraction], available: dict[str, int], max_repeats: Fraction, total: Fraction | None
) -> None:
    """Refuses categories that would be repeated too often.

    Args:
        tokens: of each category.
        available: tokens that it has.
        max_repeats: most epochs.
        total: of all categories, if the tokens of each are a share of it; else None.

    Raises:
        UserError: there is one.
    """
    epochs = {name: tokens[name] / available[name] for name in tokens}
    over = {name: count for name, count in epochs.items() if count > max_repeats}
    if not over:
        return
    lines = [
        f"  {name}: {short_number(tokens[name])} tokens of {short_number(available[name])}, {float(count):.4g} epochs"
        for name, count in sorted(over.items(), key=lambda entry: -entry[1])
    ]
    most = -(-max(over.values()) * 100 // 1) / 100
    fewer = "" if total is None else f": {total * max_repeats // max(over.values()):,} at most"
    raise UserError(
        [
            f"--mixture repeats a category more often than --max_repeats {float(max_repeats):g} allows: ask for less "
            f"of it, for fewer tokens in all (--total_tokens{fewer}), add data, or give --max_repeats {most:.10g}",
            *truncate_problems(lines, SHOWN_NAMES),
        ]
    )
