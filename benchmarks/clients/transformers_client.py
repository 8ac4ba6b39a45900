"""Encodes texts and answers prompts by transformers alone, as an environment's own program.

    python transformers_client.py --model DIR --texts T.jsonl --prompts P.jsonl --output O.json

Imports nothing of this project: it does what a user of transformers would write, and no more.
"""

import argparse
import importlib.metadata
import json
from pathlib import Path
from typing import Any

_PACKAGES = ("transformers", "tokenizers", "torch", "peft")


def main() -> None:
    """Writes versions, the ids of texts and chats, and the answers, as one JSON object."""
    arguments = parse_arguments()
    result: dict[str, Any] = {"versions": versions()}
    if arguments.texts:
        result["ids"] = encode(arguments.model, read_lines(arguments.texts))
    if arguments.conversations:
        result["chats"] = prompts_of(arguments.model, read_lines(arguments.conversations))
    if arguments.prompts:
        prompts = read_lines(arguments.prompts)
        result["greedy"] = answer(arguments.model, prompts, arguments.max_new_tokens, arguments.dtype)
    arguments.output.write_text(json.dumps(result), encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory of a model, an adapter or a tokenizer")
    parser.add_argument("--texts", type=Path, help="texts to encode, a JSON string a line")
    parser.add_argument("--prompts", type=Path, help="prompts to continue, a JSON list of ids a line")
    parser.add_argument("--conversations", type=Path, help="conversations to answer, a JSON list of messages a line")
    parser.add_argument("--max_new_tokens", type=int, default=40, help="of each prompt")
    parser.add_argument("--dtype", default="float32", help="of the weights; auto: as stored")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    return parser.parse_args()


def versions() -> dict[str, str]:
    """Returns the version of each package that has a part in the result and is installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_lines(path: Path) -> list[Any]:
    """Reads one JSON value a line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def encode(directory: str, texts: list[str]) -> list[list[int]]:
    """Encodes texts as the tokenizer does by default: with its BOS token, if it sets one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    return [tokenizer(text)["input_ids"] for text in texts]


def prompts_of(directory: str, conversations: list[list[dict[str, str]]]) -> list[list[int]]:
    """Ids of the prompt for each conversation's next answer, by the tokenizer's chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    as_ids = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    return [tokenizer.apply_chat_template(messages, **as_ids)["input_ids"] for messages in conversations]


def answer(directory: str, prompts: list[list[int]], max_new_tokens: int, dtype: str) -> list[list[int]]:
    """Continues each prompt greedily until the model's own EOS, and returns the new ids alone."""
    import torch
    from transformers import AutoModelForCausalLM

    # The older name of `dtype`: every version takes it.
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=dtype, trust_remote_code=False).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": max_new_tokens, "do_sample": False}
        answers.append(model.generate(ids, **given)[0, len(prompt) :].tolist())
    return answers


if __name__ == "__main__":
    main()
