"""A model that is given by name, on all hosts of a run: one process of each downloads it."""

from functools import partial
from pathlib import Path

import torch.distributed as dist

from colossal_llama.training.distributed import consensus
from colossal_llama.training.distributed.long_work import work_while_others_wait
from colossal_llama.utils.console import is_rank_zero
from colossal_llama.utils.distributed_env import speaks_for_host
from colossal_llama.utils.hub.fetch import cached_copy, exact_revision, fetch, local_directory
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import ModelName


def directory_on_all_hosts(source: Path | ModelName, needed: Needed) -> Path:
    """Returns a path as it is, and for a name the directory with its files on this host.

    Rank 0 decides which commit the name means, and downloads it first: where hosts share a file
    system, the others find it then. Those that do not download it in one process each. A host
    without a network needs the commit in its cache. A collective.

    Raises:
        CollectiveError: a host can neither find nor download it.
        Stopped: a rank has received a signal meanwhile.
    """
    if isinstance(source, Path):
        return source
    exact = _revision_of_rank_zero(source)
    downloads = partial(fetch, exact, needed, source)
    work_while_others_wait(downloads if is_rank_zero() else None)
    work_while_others_wait(downloads if speaks_for_host() and not is_rank_zero() else None)
    with consensus.raise_on_all_ranks():
        if not is_rank_zero() and (cached := cached_copy(exact, needed)):
            return cached
        return local_directory(exact, needed)


def _revision_of_rank_zero(name: ModelName) -> ModelName:
    choice = [name]
    with consensus.raise_on_all_ranks():
        if is_rank_zero():
            choice = [exact_revision(name)]
    dist.broadcast_object_list(choice, src=0)
    return choice[0]
