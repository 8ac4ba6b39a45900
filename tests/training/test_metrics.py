"""Metrics that cannot be written are logged once and left out whole; training goes on."""

import json
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from colossal_llama.training.metrics import METRICS_FILE, MetricsWriter, read_metrics
from colossal_llama.training.nonfinite_steps import NonFiniteSteps


@contextmanager
def no_file_beyond(size_bytes: int) -> Iterator[None]:
    """As on a full disk, files of this process grow no further (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("set_back_s", [0, 1, 86_400, 10**10])
def test_tensorboard_shows_each_step_once_after_the_clock_was_set_back(tmp_path, monkeypatch, set_back_s):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    now = time.time
    logs, save_dir = tmp_path / "logs", tmp_path / "save"
    for begin, times in ((0, 0), (2, 1), (3, 2)):
        monkeypatch.setattr(time, "time", lambda times=times: max(0.0, now() - times * set_back_s))
        writer = MetricsWriter(logs, save_dir, begin)
        for step in range(begin + 1, 5):
            writer.write(step, {"loss": float(10 * begin + step)})
        writer.close()
    shown = EventAccumulator(str(logs)).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [(1, 1), (2, 2), (3, 23), (4, 34)]


def test_values_made_up_for_stand_in_the_line_of_their_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs, save_dir = tmp_path / "logs", tmp_path / "save"
    first = MetricsWriter(logs, save_dir)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    second = MetricsWriter(logs, save_dir, 2)
    second.amend(2, {})
    second.amend(2, {"eval_task_accuracy": {"mmlu": 0.5}})
    second.write(3, {"loss": 7.0})
    second.close()
    entries = read_metrics(logs)
    assert [(entry["step"], entry["loss"]) for entry in entries] == [(1, 1.0), (2, 2.0), (3, 7.0)]
    assert [entry.get("eval_task_accuracy") for entry in entries] == [None, {"mmlu": 0.5}, None]
    shown = EventAccumulator(str(logs)).Reload()
    assert [(event.step, event.value) for event in shown.Scalars("eval_task_accuracy/mmlu")] == [(2, 0.5)]


# TensorBoard's own thread may meet the limit too, and ends.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("room_bytes", [0, 10])
def test_a_step_without_room_is_left_out_and_the_next_ones_are_not(tmp_path, capsys, room_bytes):
    record = tmp_path / "logs" / METRICS_FILE
    writer = MetricsWriter(tmp_path / "logs", tmp_path / "save")
    writer.write(1, {"loss": 2.0})
    with no_file_beyond(record.stat().st_size + room_bytes):
        writer.write(2, {"loss": 1.5})
        writer.write(3, {"loss": 1.5})
    writer.write(4, {"loss": 1.0})
    writer.close()
    assert [json.loads(line)["step"] for line in record.read_text().splitlines()] == [1, 4]
    printed = capsys.readouterr().out
    assert printed.count("COULD NOT BE WRITTEN") == 1
    assert f"THE METRICS OF STEP 2 COULD NOT BE WRITTEN to {record}: " in printed


def test_a_bad_step_without_room_is_printed(tmp_path, capsys):
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        steps = NonFiniteSteps(
            tmp_path / "no_such" / "bad_steps.jsonl", SimpleNamespace(locate=lambda sample: ("part", sample)), 3
        )
        assert steps.observe(5, math.nan, None, [SimpleNamespace(sample_ids=[7, 9])])
    finally:
        dist.destroy_process_group()
    printed = capsys.readouterr().out
    assert "bad_steps.jsonl could not be written (No such file or directory)" in printed
    assert '"rows": [{"part": "part", "row": 7}, {"part": "part", "row": 9}]' in printed
