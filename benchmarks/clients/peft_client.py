"""Merges an adapter by PEFT alone, and compares every tensor with the merged model beside it.

python peft_client.py --model RUN/modelling --output O.json     (and RUN/modelling_merged)

Only the adapter is asked about.
"""

import argparse
import json
from importlib.metadata import version
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM


def main() -> None:
    """Writes the versions, and how many tensors are equal bit for bit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of the adapter")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options, _ = parser.parse_known_args()  # answers are other clients'
    # The older name of `dtype`: every version takes it.
    merged_dir = options.model.parent / "modelling_merged"
    expected = AutoModelForCausalLM.from_pretrained(merged_dir, torch_dtype="auto", trust_remote_code=False)
    adapted = AutoPeftModelForCausalLM.from_pretrained(
        options.model, torch_dtype=expected.dtype, trust_remote_code=False
    )
    merged = adapted.merge_and_unload().state_dict()
    tensors = expected.state_dict()
    equal = sum(torch.equal(merged[name], tensor) for name, tensor in tensors.items())
    result = {
        "versions": {name: version(name) for name in ("peft", "transformers", "torch")},
        "further": {"note": f"merged: {equal} of {len(tensors)} tensors bit for bit"},
    }
    options.output.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
