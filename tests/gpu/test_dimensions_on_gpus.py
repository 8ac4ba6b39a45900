"""On two GPUs: each dimension of plugin 3d, and each plugin with two data-parallel ranks, trains
what one process of zero2 trains.
"""

import subprocess

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]

RUN = (
    "--num_epochs",
    "4",
    "--lr",
    "1e-3",
    "--mixed_precision",
    "bf16",
    "--save_interval",
    "10",
    "--skip_save_each_epoch",
)
ALL_ROWS = ("--micro_batch_size", "4", "--accumulation_steps", "2")
HALF_OF_THEM = ("--micro_batch_size", "2", "--accumulation_steps", "2")
DIMENSIONS = {
    "tp2": ("--tp", "2"),
    "pp2": ("--pp", "2"),
    "pp2_recomputed": ("--pp", "2", "--microbatch_size", "2", "--use_grad_checkpoint"),
    "split_gather": ("--tp", "2", "--sp", "2", "--zero", "2"),
    "ring": ("--tp", "2", "--sp", "2", "--sp_mode", "ring"),
    "all_to_all": ("--sp", "2", "--sp_mode", "all_to_all", "--zero", "2"),
}
PLUGINS = {
    "zero2": ("--plugin", "zero2"),
    "zero2_cpu": ("--plugin", "zero2_cpu"),
    "3d_zero0": ("--plugin", "3d", "--zero", "0"),
    "3d_zero1": ("--plugin", "3d"),
    "ddp": ("--plugin", "ddp"),
}
GEMINI = {"gemini": ("--plugin", "gemini"), "gemini_auto": ("--plugin", "gemini_auto")}  # keep state in their process
OPTIONS = {name: (*ALL_ROWS, "--plugin", "3d", *dimensions) for name, dimensions in DIMENSIONS.items()}
OPTIONS |= {name: (*HALF_OF_THEM, *options) for name, options in (PLUGINS | GEMINI).items()}
RESUMED = (*DIMENSIONS, "zero2", *GEMINI)


@pytest.fixture(scope="module")
def runs(runner):
    """Gives the runner after the launch that a run belongs to: one process, or two for the first
    runs and then those from checkpoints.

    What a launch says that fails is kept: the runs before the one that failed are judged all the
    same.
    """
    failures: dict[tuple[str, ...], str] = {}

    def run(name: str):
        for group, ranks in ((("alone",), 1), (tuple(GEMINI) if name in GEMINI else (*DIMENSIONS, *PLUGINS), 2)):
            if group not in failures:
                failures[group] = launched(runner, commands_of(runner, group), ranks)
        said = next(failures[group] for group in failures if name in group)
        return runner, said + failures[("alone",)]

    return run


def commands_of(runner, group: tuple[str, ...]) -> list[list[str]]:
    if group == ("alone",):
        return [runner.command("alone", *RUN, *ALL_ROWS)]
    checkpoint = {name: str(runner.workspace / name / "save" / "epoch-1_step-10") for name in group}
    return [runner.command(name, *RUN, *OPTIONS[name]) for name in group] + [
        runner.command(f"{name}_again", *RUN, *OPTIONS[name], "--load_checkpoint", checkpoint[name])
        for name in group
        if name in RESUMED
    ]


def launched(runner, commands: list[list[str]], ranks: int) -> str:
    """Runs them; what was said if they fail or do not end, else nothing."""
    try:
        runner.run(commands, ranks=ranks, timeout_s=270)
    except AssertionError as error:
        return str(error)
    except subprocess.TimeoutExpired as error:
        said = [
            out if isinstance(out, str) else (out or b"").decode(errors="replace")
            for out in (error.stdout, error.stderr)
        ]
        return "\n".join([str(error), *(out[-4000:] for out in said)])
    return ""


def series(runs, name: str, key: str) -> tuple[list[float], list[float]]:
    """A number of every step, of a run and of the one process; fails with what the launch said if
    the run did not come to its end.
    """
    runner, said = runs(name.removesuffix("_again"))
    steps = 10 if name.endswith("_again") else 20
    try:
        found = [step[key] for step in runner.metrics(name)], [step[key] for step in runner.metrics("alone")]
    except FileNotFoundError:
        pytest.fail(f"{name} has not begun: {said}")
    assert len(found[0]) == steps, said
    return found


@pytest.mark.parametrize("name", OPTIONS)
def test_same_as_one_process(runs, name):
    losses, expected = series(runs, name, "loss")
    assert losses == pytest.approx(expected, rel=1e-2)  # on two CPU processes in bf16: 1e-3
    norms, expected = series(runs, name, "gradient_norm")
    assert norms == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("name", RESUMED)
def test_goes_on_from_its_checkpoint(runs, name):
    losses, _ = series(runs, f"{name}_again", "loss")
    assert losses == pytest.approx(series(runs, name, "loss")[0][10:], rel=1e-3)
