"""Parallel layouts: every impossible one is refused, with the nearest possible one."""

import itertools
import json
import re

import pytest

from colossal_llama.training.command_line import parse_arguments
from colossal_llama.training.parallel_layout import (
    SP_MODES,
    FrozenLayers,
    Layout,
    ModelShape,
    layers_of_stages,
    layout_problem,
    read_model_shape,
)
from colossal_llama.utils import transformers_version
from tests.support.versions import NEEDS_SHARD_POLICIES

SHAPE = ModelShape(layers=6, heads=12, key_value_heads=4, intermediate=96)


def problem(layout: Layout, world_size: int = 8, **settings) -> str | None:
    return layout_problem(layout, world_size, SHAPE, **{"half_precision": True, **settings})


@pytest.mark.parametrize("half_precision", [True, False])
def test_the_setting_that_a_refusal_names_is_possible(half_precision):
    sizes = (1, 2, 3, 4, 8)
    for pp, tp, sp, mode, zero in itertools.product(sizes, sizes, sizes, SP_MODES, (0, 1, 2)):
        refusal = problem(Layout(pp, tp, sp, mode, zero), half_precision=half_precision)
        if refusal is not None:
            named = re.search(r"possible setting is --pp (\d+) --tp (\d+) --sp (\d+) --zero (\d)$", refusal)
            other = Layout(*map(int, named.groups()[:3]), mode, int(named[4]))
            assert problem(other, half_precision=half_precision) is None, (refusal, other)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout(pp=3), "does not divide the 8 processes"),
        (Layout(pp=8), "more than the model's 6 layers"),
        (Layout(pp=2, zero=2), "once a pipeline micro-batch"),
        (Layout(tp=8), "12 attention heads"),
        (Layout(tp=2, sp=4), "must equal --tp"),
        (Layout(tp=2, sp=4, sp_mode="all_to_all"), "--tp 2 x --sp 4 does not divide"),
    ],
)
def test_each_reason(layout, reason):
    assert reason in problem(layout)


def test_what_depends_on_the_method():
    frozen = FrozenLayers("--train_only embeddings", None)
    assert problem(Layout(pp=4, zero=0), frozen=frozen).endswith("--pp 2 --tp 1 --sp 1 --zero 0")
    assert problem(Layout(pp=2, zero=0), frozen=frozen) is None
    assert problem(Layout(tp=2, zero=1), half_precision=False).endswith("--pp 1 --tp 2 --sp 1 --zero 0")


@pytest.mark.parametrize(("layers", "stages"), itertools.product((4, 5, 6, 7, 30, 32), (1, 2, 3, 4)))
def test_layers_are_divided_over_stages_as_the_engine_divides_them(layers, stages):
    from colossalai.pipeline.stage_manager import PipelineStageManager

    manager = PipelineStageManager.__new__(PipelineStageManager)
    manager.num_layers_per_stage, manager.num_model_chunks = None, 1
    assert layers_of_stages(layers, stages) == manager.distribute_layers(layers, num_stages=stages)


def test_frozen_layers_leave_each_stage_something_to_train():
    """The first stage has the embedding, the last the norm; of 6 layers two are on stage 2 of 4."""
    for number, stage in ((2, None), (3, 2), (5, 2), (6, 2)):
        refusal = problem(Layout(pp=4, zero=0), frozen=FrozenLayers(f"--freeze_layers {number}", number))
        assert (refusal is None) == (stage is None)
        assert stage is None or f"--freeze_layers {number} leaves stage {stage} of --pp 4 nothing to train" in refusal
    assert problem(Layout(pp=2, zero=0), frozen=FrozenLayers("--freeze_layers 6", 6)) is None


@pytest.fixture
def words(tmp_path) -> list[str]:
    """Options of train.py with a model of two layers, four heads and two key-value heads."""
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "part").mkdir()
    return ["--pretrained", str(tmp_path / "model"), "--dataset", str(tmp_path / "part"), "--plugin", "3d"]


def test_the_shape_is_read_from_the_model_before_anything_is_loaded(words, tmp_path, capsys):
    assert read_model_shape(tmp_path / "model") == ModelShape(2, 4, 2, 96)
    with pytest.raises(SystemExit):
        parse_arguments([*words, "--tp", "4"], world_size=4)
    assert "--tp 4 does not divide the model's 2 key-value heads" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_arguments([*words, "--pp", "2", "--micro_batch_size", "6", "--microbatch_size", "4"], world_size=4)
    assert "the nearest that does is 3" in capsys.readouterr().err


@NEEDS_SHARD_POLICIES
def test_a_possible_layout_is_accepted(words):
    assert parse_arguments([*words, "--tp", "2", "--pp", "2"], world_size=4).plugin.pp == 2


@pytest.mark.parametrize("dimension", ["--tp", "--pp"])
def test_other_transformers_train_whole_models_only(words, monkeypatch, capsys, dimension):
    monkeypatch.setattr(transformers_version, "transformers_version", lambda: "5.24.0")
    with pytest.raises(SystemExit):
        parse_arguments([*words, dimension, "2"], world_size=4)
    assert "--tp, --pp and --sp need transformers 4.51.3" in capsys.readouterr().err
    assert parse_arguments(words, world_size=4).plugin.plugin == "3d"
