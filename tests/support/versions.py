"""Runs that not every supported version of transformers can make: their tests are skipped."""

from collections.abc import Mapping, Sequence

import pytest

from colossal_llama.utils.transformers_version import shard_policies_problem

NEEDS_SHARD_POLICIES = pytest.mark.skipif(
    shard_policies_problem() is not None, reason="3d with tp, pp or sp is for transformers 4.51 alone"
)


def can_run(options: Sequence[str]) -> bool:
    """True when train.py can run with these options under the installed transformers."""
    return shard_policies_problem() is None or not {"--tp", "--pp", "--sp"} & set(options)


def run_names(cases: Mapping[str, Sequence[str]]) -> list:
    """The names of runs, as pytest's parameters; those that cannot be made are skipped."""
    return [
        pytest.param(name, marks=() if can_run(options) else NEEDS_SHARD_POLICIES) for name, options in cases.items()
    ]


def possible(cases: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The runs that can be made."""
    return {name: options for name, options in cases.items() if can_run(options)}
