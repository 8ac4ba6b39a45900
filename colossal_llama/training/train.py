"""Continues the pre-training of a LLaMA, or fine-tunes it: one run, from data to model.

Signals are handled from the first import on, so all others are within functions.
"""

import os
import sys
from typing import TYPE_CHECKING

from colossal_llama.training import signals

if TYPE_CHECKING:
    from colossal_llama.training.arguments import TrainingArguments


def main() -> None:
    """Parses the command line, joins the process group, trains, and leaves the group."""
    with signals.REQUEST.listening():
        from colossal_llama.training.command_line import parse_arguments
        from colossal_llama.utils.distributed_env import adopt_slurm_variables, launcher_problems
        from colossal_llama.utils.errors import UserError

        if {"-h", "--help"} & set(sys.argv[1:]):
            parse_arguments()
        adopt_slurm_variables()
        if problems := launcher_problems():
            raise UserError(problems)
        _run()


def _run() -> None:
    """Trains in the process group; all ranks leave it together, unless one fails."""
    from colossal_llama.engine import launch
    from colossal_llama.training.command_line import parse_arguments
    from colossal_llama.training.distributed import consensus, watchdog
    from colossal_llama.training.memory.allocator import enable_expandable_segments
    from colossal_llama.training.memory.config import selective_recomputation_possible

    def parse() -> "TrainingArguments":
        arguments = parse_arguments(has_gpu=launch.has_gpu(), world_size=int(os.environ.get("WORLD_SIZE", "1")))
        if selective_recomputation_possible(arguments):
            enable_expandable_segments()
        return arguments

    with watchdog.lost_ranks_named():
        try:
            arguments = consensus.parse_and_launch(parse, lambda arguments: arguments.data.seed)
            with watchdog.watched(arguments.checkpoint.save_dir):
                train(arguments)
        except signals.Stopped:
            launch.leave()
            raise
        # Not after another error: leaving waits for the other ranks, which may be waiting for this
        # one.
        launch.leave()


def train(arguments: "TrainingArguments") -> None:
    """Runs one training: opens the inputs, sets up the model, trains, and saves the result."""
    # Imported here: these import ColossalAI, which the launch must have prepared.
    from colossal_llama.training.distributed.consensus import announce_late_signal
    from colossal_llama.training.dry_run import report_dry_run
    from colossal_llama.training.final_model import finish_run
    from colossal_llama.training.inputs import open_inputs, with_data_defaults
    from colossal_llama.training.model_setup import set_up_model
    from colossal_llama.training.run_builder import build_trainer
    from colossal_llama.training.run_dir import locked_run_dirs
    from colossal_llama.training.startup_report import report_startup

    with locked_run_dirs(arguments):
        inputs = open_inputs(arguments)
        arguments = with_data_defaults(arguments, inputs)
        if arguments.dry_run.dry_run:
            report_dry_run(arguments, inputs)
            return
        setup = set_up_model(arguments, inputs)
        trainer = build_trainer(arguments, inputs, setup)
        report_startup(arguments, inputs, trainer, setup.notes)
        finished = trainer.fit()
        finish_run(arguments, trainer, inputs, finished)
        announce_late_signal()
