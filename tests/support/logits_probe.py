"""Prints saved models' logits as AutoModelForCausalLM computes them in any version.

    python logits_probe.py DIRECTORY …

It is run by its path in environments that have nothing of this project.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM

IDS = [[1, 5, 9, 100, 33, 7, 64, 2, 1, 17, 19]]


def logits_of(directory: str) -> tuple[str, list]:
    """Name of the model's class, and its logits of `IDS` in fp32."""
    model = AutoModelForCausalLM.from_pretrained(directory).float().eval()
    with torch.no_grad():
        return type(model).__name__, model(input_ids=torch.tensor(IDS)).logits[0].tolist()


if __name__ == "__main__":
    print(json.dumps([logits_of(directory) for directory in sys.argv[1:]]))
