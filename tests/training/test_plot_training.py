"""Loss curves: damaged metrics and a plot that cannot be written are named."""

import json

import numpy as np
import pytest
from PIL import Image

from colossal_llama.training.plot_training import Curve, draw_curves, read_curve
from colossal_llama.utils.errors import UserError


@pytest.mark.parametrize(
    "content",
    [
        *(b"\x0a\x93\x01 no text", b"no json", b'{"step": 1}', b"[1]", b"1", b"\x00", b"[" * 5000),
        b'{"step": 1, "tokens_seen": 2, "loss": "high"}',
        b'{"step": 1, "tokens_seen": 2, "loss": [1]}',
        b'{"step": 1e999, "tokens_seen": 2, "loss": 1}',
        b'{"step": 1%s, "tokens_seen": 2, "loss": 1}' % (b"0" * 30),
        b'{"step": 1, "tokens_seen": 2, "loss": 1, "eval_loss": "low"}',
        b'{"step": 1, "tokens_seen": 2, "loss": 1, "eval_task_accuracy": 0.5}',
        b'{"step": 1, "tokens_seen": 2, "loss": 1, "eval_task_accuracy": {"mmlu": "all"}}',
    ],
)
def test_what_is_no_record_is_said(content, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(content + b"\n")
    with pytest.raises(UserError, match=r"these are not metrics written by train\.py"):
        read_curve(tmp_path, "run")


def test_accuracies_are_drawn_where_a_run_has_them(tmp_path):
    lines = [
        {"step": step, "tokens_seen": 10 * step, "loss": 1 / step, **({"eval_task_accuracy": found} if found else {})}
        for step, found in ((1, {}), (2, {"mmlu": 0.25, "_own$": 0.5}), (3, {}), (4, {"mmlu": 0.5, "_own$": 0.5}))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = read_curve(tmp_path, "run")
    assert {task: points.tolist() for task, points in curve.accuracies.items()} == {
        "mmlu": [[2, 0.25], [4, 0.5]],
        "_own$": [[2, 0.5], [4, 0.5]],
    }
    plain = Curve("other", curve.steps, curve.tokens, curve.losses, np.zeros((0, 3)))
    for name, curves in (("one", [curve]), ("both", [curve, plain]), ("plain", [plain])):
        draw_curves(curves, tmp_path / f"{name}.png")
    with Image.open(tmp_path / "one.png") as with_panel, Image.open(tmp_path / "plain.png") as without:
        assert with_panel.width > without.width


def test_a_picture_that_cannot_be_drawn_is_said(tmp_path):
    curve = Curve("run", np.array([1, 2]), np.array([10, 20]), np.array([3.0, 2.0]), np.zeros((0, 3)))
    (tmp_path / "directory.png").mkdir()
    for name in ("directory.png", "loss.nothing"):
        with pytest.raises(UserError, match=f"{name} cannot be plotted"):
            draw_curves([curve], tmp_path / name)
