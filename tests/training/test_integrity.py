"""Comparison of a checkpoint, divided over ranks: each file once, model files once a host."""

from collections import Counter

import pytest

from colossal_llama.training.checkpoint.integrity import position_of, share_of_checkpoint
from colossal_llama.utils.checksums import FileChecksum

MODEL_FILES = {f"modelling/model-{number:05d}-of-00007.safetensors" for number in range(7)}
ROOT_FILES = {"running_states.json", "lr_scheduler", "optimizer/index.json"}
STATE_FILES = {
    f"{folder}/rank-{rank:05d}-00000.safetensors" for folder in ("optimizer", "random_states") for rank in range(4)
}


@pytest.mark.parametrize("hosts", [["a"], ["a", "a", "a", "a"], ["a", "a", "b", "b"], ["b", "a", "b"], list("abcdef")])
def test_every_file_is_compared_and_none_twice_on_a_host(hosts):
    names = [*MODEL_FILES, *ROOT_FILES, *STATE_FILES]
    files = {name: FileChecksum(len(name), "") for name in names}
    shares = [share_of_checkpoint(files, position_of(rank, hosts)) for rank in range(len(hosts))]
    assert Counter(name for share in shares for name in share if name in STATE_FILES) == Counter(STATE_FILES)
    for host in set(hosts):
        there = [share for share, its_host in zip(shares, hosts, strict=True) if its_host == host]
        shared = Counter(name for share in there for name in share if name not in STATE_FILES)
        assert shared == Counter(MODEL_FILES | ROOT_FILES)
        assert max(map(len, there)) - min(map(len, there)) <= 4


def test_a_rank_compares_the_state_that_it_will_read():
    files = {name: FileChecksum(1, "") for name in STATE_FILES}
    for rank in range(4):
        share = share_of_checkpoint(files, position_of(rank, ["a", "a", "b", "b"]))
        assert set(share) == {name for name in STATE_FILES if f"rank-{rank:05d}" in name}
