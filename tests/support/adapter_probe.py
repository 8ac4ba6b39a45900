"""Prints an adapter's logits as peft and transformers of any version compute them.

    python adapter_probe.py BASE ADAPTER …

It is run by its path in environments that have nothing of this project.
"""

import json
import sys

import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

IDS = [[1, 5, 9, 100, 160, 7, 202, 2, 1, 151, 19]]


def logits_by_way(base: str, adapter: str) -> dict[str, list]:
    """Logits of `IDS` in fp32, by each way of opening the adapter."""
    opened = {
        "PeftModel": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter),
        "AutoPeftModel": AutoPeftModelForCausalLM.from_pretrained(adapter),
        "AutoModel": AutoModelForCausalLM.from_pretrained(adapter),
        "merged": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload(),
    }
    with torch.no_grad():
        return {
            way: model.float().eval()(input_ids=torch.tensor(IDS)).logits[0].tolist() for way, model in opened.items()
        }


if __name__ == "__main__":
    print(json.dumps([logits_by_way(sys.argv[1], adapter) for adapter in sys.argv[2:]]))
