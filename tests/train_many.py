"""Started by torchrun: runs train.py's story for each command line of a JSON file, in one process group.

Starting two processes takes ten times as long as training the tests' tiny model, so the equality tests share one start.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import train
from colossal_llama.training.arguments import parse_arguments
from colossal_llama.utils import engine


def main() -> None:
    """Launches once, trains many times."""
    commands = json.loads(Path(sys.argv[1]).read_text())
    engine.launch(seed=0)
    from colossal_llama.training import session

    for command in commands:
        arguments = parse_arguments(command, has_gpu=engine.has_gpu(), world_size=int(os.environ["WORLD_SIZE"]))
        torch.manual_seed(arguments.seed)
        train.train(arguments, session)
    engine.leave()


if __name__ == "__main__":
    main()
