"""Continue the pre-training of a LLaMA, or fine-tune it, with ColossalAI's Booster (`python train.py --help`).

torchrun --standalone --nproc_per_node 8 train.py --pretrained MODEL --dataset DATA/arrow/part-0000* --plugin zero2 …
"""

import os
import sys
from types import ModuleType

from colossal_llama.training.arguments import TrainingArguments, parse_arguments
from colossal_llama.training.memory.allocator import let_segments_grow
from colossal_llama.training.memory.config import may_be_frugal
from colossal_llama.utils.distributed_env import adopt_slurm_variables


def main() -> None:
    """Parse, launch, open, boost, resume, fit, save."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        parse_arguments()
    adopt_slurm_variables()
    from colossal_llama.engine import launch
    from colossal_llama.training.distributed import consensus, watchdog

    def parse() -> TrainingArguments:
        arguments = parse_arguments(has_gpu=launch.has_gpu(), world_size=int(os.environ.get("WORLD_SIZE", "1")))
        if may_be_frugal(arguments):
            let_segments_grow()
        return arguments

    arguments = consensus.parse_and_launch(parse, lambda arguments: arguments.seed)
    from colossal_llama.training import run_builder  # imports ColossalAI, which the launch has prepared

    with watchdog.watched(arguments.save_dir):
        train(arguments, run_builder)
    # Not after an error: leaving waits for the other ranks, and they may wait for this one.
    launch.leave()


def train(arguments: TrainingArguments, run_builder: ModuleType) -> None:
    """One training run from opened data to the saved model."""
    # As late as session, and for the same reason.
    from colossal_llama.training.inputs import open_data
    from colossal_llama.training.model_setup import open_model

    with run_builder.sole_writer(arguments):
        data = open_data(arguments)
        arguments = run_builder.with_defaults_of(arguments, data)
        if arguments.dry_run:
            run_builder.dry_run(arguments, data)
            return
        plan = open_model(arguments, data)
        run = run_builder.boost(arguments, data, plan)
        run_builder.say_plan(arguments, data, plan, run)
        finished = run.fit()
        run_builder.finish(arguments, run, data.model_path, finished)
