"""Heartbeats: a silent rank is noticed, a living one is not."""

import threading

import pytest
import torch.distributed as dist

from colossal_llama.training.distributed.heartbeat import Heartbeat, HeartbeatMonitor
from tests.support.waiting import wait_until


@pytest.fixture
def store() -> dist.Store:
    return dist.PrefixStore("test", dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))


def test_a_rank_that_stops_is_silent_and_a_living_one_is_not(store):
    beats = [Heartbeat(store, rank, interval_s=0.01) for rank in (0, 1)]
    monitor = HeartbeatMonitor(store, [0, 1])
    for beat in beats:
        beat.start()
    beats[1].stop(within_s=5)

    def silent() -> list[int]:
        monitor.poll()
        return monitor.silent_ranks(limit_s=0.5)

    assert silent() == []
    wait_until(lambda: silent() == [1], every_s=0.01)
    monitor.reset()
    assert silent() == []
    beats[0].stop(within_s=5)


def test_a_rank_that_never_begins_is_silent_after_the_limit(store):
    monitor = HeartbeatMonitor(store, [3])
    monitor.poll()
    assert monitor.silent_ranks(limit_s=0.2) == []
    wait_until(lambda: monitor.silent_ranks(limit_s=0.2) == [3], every_s=0.01)


def test_a_lost_store_ends_the_heartbeat(store):
    lost = threading.Event()

    def fail() -> None:
        raise dist.DistNetworkError("the store does not answer")

    beat = Heartbeat(store, 0, interval_s=0.01, after_beat=fail, on_lost_store=lost.set)
    beat.start()
    assert lost.wait(5)
    beat.stop(within_s=5)
    assert not beat._thread.is_alive()
