"""Loss curves: damaged metrics and a plot that cannot be written are named."""

import numpy as np
import pytest

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
    ],
)
def test_what_is_no_record_is_said(content, tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(content + b"\n")
    with pytest.raises(UserError, match=r"these are not metrics written by train\.py"):
        read_curve(tmp_path, "run")


def test_a_picture_that_cannot_be_drawn_is_said(tmp_path):
    curve = Curve("run", np.array([1, 2]), np.array([10, 20]), np.array([3.0, 2.0]), np.zeros((0, 3)))
    (tmp_path / "directory.png").mkdir()
    for name in ("directory.png", "loss.nothing"):
        with pytest.raises(UserError, match=f"{name} cannot be plotted"):
            draw_curves([curve], tmp_path / name)
