"""Fine-tunes a model by TRL for one step, with the tokenizer and the chat template beside it.

    python trl_client.py --model DIR --trained C.jsonl --output O.json

`SFTTrainer` renders whole conversations and takes the answers as targets, by the marks of the
template (`assistant_only_loss`). Imports nothing of this project.
"""

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main() -> None:
    """Writes versions, the ids and labels of each conversation, and the loss of the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of the model")
    parser.add_argument("--trained", type=Path, required=True, help="whole conversations, a list of messages a line")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    options, _ = parser.parse_known_args()  # answers are other clients'
    conversations = [json.loads(line) for line in options.trained.read_text(encoding="utf-8").splitlines()]
    with tempfile.TemporaryDirectory() as directory:
        settings = SFTConfig(
            directory,
            assistant_only_loss=True,
            max_length=None,  # else rows are cut off
            max_steps=1,
            per_device_train_batch_size=2,
            learning_rate=1e-4,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        )
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(options.model, dtype="float32", trust_remote_code=False),
            settings,
            train_dataset=Dataset.from_list([{"messages": messages} for messages in conversations]),
            processing_class=AutoTokenizer.from_pretrained(options.model, trust_remote_code=False),
        )
        rows = [(row["input_ids"], row["labels"]) for row in trainer.train_dataset]
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    result = {
        "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
        "rows": rows,
        "further": {"note": f"loss of one step: {losses[0]:.3f}"},
    }
    options.output.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
