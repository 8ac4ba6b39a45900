"""The sizing model against its measurement, published figures, and what must grow with what."""

import itertools
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from colossal_llama.training.memory.scale_model import HARDWARE, PLUGINS, PUBLISHED, RATES, Run, predict

PROJECT_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", RATES)
def test_one_gpu_gives_back_the_measurement(name):
    rate = RATES[name]
    run = Run(rate.model, rate.hardware, 1, micro_batch_size=rate.micro_batch_size)
    prediction = predict(run, rate)
    assert prediction.exposed_s == 0
    assert prediction.tokens_per_s_per_gpu == pytest.approx(rate.tokens_per_s)


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.run.hardware)
def test_published_figures_are_met_within_a_tenth(published):
    predicted = predict(published.run, RATES["plain-7b"]).tokens_per_s_per_gpu
    assert predicted == pytest.approx(published.tokens_per_s_per_gpu, rel=0.1)


@pytest.mark.parametrize("name", PLUGINS)
def test_more_gpus_cost_communication_and_save_memory(name):
    plugin, tp = PLUGINS[name]
    rate = RATES["plain-7b"]
    steps = [predict(Run("13b", "h200", gpus, plugin, tp), rate) for gpus in (8, 16, 32, 64)]
    for fewer, more in itertools.pairwise(steps):
        assert more.exposed_s > fewer.exposed_s
        assert more.memory_bytes <= fewer.memory_bytes
        assert more.compute_s == fewer.compute_s


def test_what_the_network_costs_depends_on_the_network_between_hosts_only():
    rate, run = RATES["plain-7b"], Run("7b", "h200", 16)
    slow = replace(HARDWARE["h200"], network_bytes_per_s=25e9)
    assert predict(run, rate, slow).exposed_s > predict(run, rate).exposed_s
    inside = replace(run, gpus=8)
    assert predict(inside, rate, slow) == predict(inside, rate)
    accumulated = predict(replace(run, accumulation_steps=8), rate, slow)
    assert accumulated.exposed_s < 8 * predict(run, rate, slow).exposed_s
    assert accumulated.tokens_per_s_per_gpu > predict(run, rate, slow).tokens_per_s_per_gpu


def test_the_readme_shows_what_the_script_prints():
    text = (PROJECT_ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## Sizing") :]
    shown = re.findall(
        r"```bash\npython (colossal_llama/training/memory/scale_model\.py .*)\n```\n"
        r"(?:.*\n)*?```\n((?:(?!```).*\n)*)```",
        section,
    )
    assert len(shown) == 2
    for command, block in shown:
        words = [sys.executable, *command.split()]
        printed = subprocess.run(words, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout
        assert block == printed, f"paste what `python {command}` prints"
