"""Continue the pre-training of a LLaMA, or fine-tune it, with ColossalAI's Booster (`python train.py --help`).

torchrun --standalone --nproc_per_node 8 train.py --pretrained MODEL --dataset DATA/arrow/part-0000* --plugin zero2 …
"""

import os
import sys
from types import ModuleType

from colossal_llama.training.arguments import TrainingArguments, parse_arguments
from colossal_llama.training.memory_setup import may_be_frugal
from colossal_llama.utils.allocator import let_segments_grow
from colossal_llama.utils.errors import run_main
from colossal_llama.utils.launchers import take_over_from_slurm


def main() -> None:
    """Parse, launch, open, boost, resume, fit, save."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        parse_arguments()
    take_over_from_slurm()
    from colossal_llama.training import agreement, host_watch
    from colossal_llama.utils import engine

    def parse() -> TrainingArguments:
        arguments = parse_arguments(has_gpu=engine.has_gpu(), world_size=int(os.environ.get("WORLD_SIZE", "1")))
        if may_be_frugal(arguments):
            let_segments_grow()
        return arguments

    arguments = agreement.parse_and_launch(parse, lambda arguments: arguments.seed)
    from colossal_llama.training import session  # imports ColossalAI, which the launch has prepared

    with host_watch.watched(arguments.save_dir):
        train(arguments, session)
    # Not after an error: leaving waits for the other ranks, and they may wait for this one.
    engine.leave()


def train(arguments: TrainingArguments, session: ModuleType) -> None:
    """One training run from opened data to the saved model."""
    # As late as session, and for the same reason.
    from colossal_llama.training.model_setup import open_model
    from colossal_llama.training.opening import open_data

    with session.sole_writer(arguments):
        data = open_data(arguments)
        arguments = session.with_defaults_of(arguments, data)
        if arguments.dry_run:
            session.dry_run(arguments, data)
            return
        plan = open_model(arguments, data)
        run = session.boost(arguments, data, plan)
        session.say_plan(arguments, data, plan, run)
        finished = run.fit()
        session.finish(arguments, run, data.model_path, finished)


if __name__ == "__main__":
    run_main(main)
