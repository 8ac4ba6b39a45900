"""On the GPU: what is trained, and how fast, on every plugin; all else keeps its bytes."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support import plain_adamw
from tests.support.plain_adamw import INPUT, OUTPUT
from tests.support.trained_rows import CLIP, RUN, WAYS, Models, assert_follows, assert_untouched, make_models

pytestmark = pytest.mark.gpu

PLUGINS = {
    "zero2": (),
    "zero2_plain": ("--fused_kernels", "False"),
    "zero2_recomputed": ("--use_grad_checkpoint",),
    "zero2_cpu": ("--plugin", "zero2_cpu"),
    "3d": ("--plugin", "3d", "--zero", "0"),
    "ddp": ("--plugin", "ddp"),
    "gemini": ("--plugin", "gemini"),
    "gemini_auto": ("--plugin", "gemini_auto"),
}
CASES = [(way, model) for way in ("new_rows", "rates", "frozen_layer") for model in ("untied", "tied")]
BATCH = ("--mixed_precision", "bf16", "--micro_batch_size", "4", "--accumulation_steps", "2", "--save_interval", "2")


@pytest.fixture(scope="module")
def models(toy, tmp_path_factory) -> Models:
    return make_models(toy, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def runs(runner, models):
    """Gives the runner after a plugin's runs, in a launch of their own: some keep state."""
    done = set()

    def run(plugin: str):
        if plugin not in done:
            commands = []
            for way, model in CASES:
                options = (*RUN, *BATCH, *PLUGINS[plugin], *WAYS[way][0])
                name, path = f"{plugin}-{way}-{model}", str(getattr(models, model))
                commands.append(runner.command(name, *options, "--pretrained", path, pretrained=False))
                checkpoint = str(runner.workspace / name / "save" / "epoch-0_step-2")
                again = (*options, "--load_checkpoint", checkpoint)
                commands.append(runner.command(f"{name}_again", *again, pretrained=False))
            runner.run(commands, ranks=1, timeout_s=600)
            done.add(plugin)
        return runner

    return run


@pytest.mark.parametrize(("way", "model"), CASES)
@pytest.mark.parametrize("plugin", PLUGINS)
def test_follows_plain_adamw_and_goes_on_alike(runs, models, toy, plugin, way, model):
    runner, name = runs(plugin), f"{plugin}-{way}-{model}"
    metrics, path = runner.metrics(name), getattr(models, model)
    rates = [step["learning_rate"] for step in metrics]
    weights, norms = plain_adamw.train(path, toy.parts, WAYS[way][1], rates, 8, CLIP)
    assert [step["gradient_norm"] for step in metrics] == pytest.approx(norms, rel=3e-2)
    before, found = load_file(path / "model.safetensors"), tied_once(runner.weights(name), model)
    assert_follows(found, weights, before)
    assert_untouched(found, before, WAYS[way][1])
    assert_untouched(tied_once(runner.weights(f"{name}_again"), model), before, WAYS[way][1])
    assert runner.losses(f"{name}_again") == pytest.approx(runner.losses(name)[2:], rel=1e-3)


def tied_once(weights: dict[str, torch.Tensor], model: str) -> dict[str, torch.Tensor]:
    """A tied matrix under the input's name alone; Gemini saves it under the output's, too."""
    if model == "tied" and OUTPUT in weights:
        assert torch.equal(weights[INPUT], weights.pop(OUTPUT))
    return weights
