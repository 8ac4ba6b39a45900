"""Answers a text with plain transformers, in a process of its own. Imports nothing of the package.

`main` takes a JSON file: `model` and `adapter` (directories; the latter may be null), `tokenizer`,
`text`, `max_new_tokens`, `device`, and the files to write: `answer` (JSON), `logits` (NumPy).
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Loads, computes the logits of the prompt and the greedy answer, and writes both."""
    request = json.loads(Path(sys.argv[-1]).read_text(encoding="utf-8"))
    import numpy
    import torch

    tokenizer, model = load(request)
    ids, is_chat = prompt_ids(tokenizer, request["text"])
    prompt = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=prompt).logits[0].float().cpu().numpy()
        given = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "num_beams": 1}
        given |= {"return_dict_in_generate": True, "output_logits": True}
        output = model.generate(prompt, max_new_tokens=request["max_new_tokens"], **given)
    new = output.sequences[0, len(ids) :].tolist()
    best = torch.cat(output.logits).float().topk(2).values.cpu()
    numpy.save(request["logits"], logits)
    answer = {
        "prompt_ids": ids,
        "is_chat": is_chat,
        "ids": new,
        "margins": (best[:, 0] - best[:, 1]).tolist(),
        "text": tokenizer.decode(new, skip_special_tokens=True),
        "transformers": importlib.metadata.version("transformers"),
    }
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")


def load(request: dict[str, Any]) -> tuple[Any, Any]:
    """Loads tokenizer and model as their users would, in the dtype in which they are stored."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["tokenizer"], trust_remote_code=False)
    # The older name of `dtype`: both transformers 4 and 5 take it.
    model = AutoModelForCausalLM.from_pretrained(request["model"], torch_dtype="auto", trust_remote_code=False)
    if request["adapter"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, request["adapter"])
    return tokenizer, model.to(request["device"]).eval()


def prompt_ids(tokenizer: Any, text: str) -> tuple[list[int], bool]:
    """Ids of the text as a chat's first message; as plain text where there is no chat template."""
    if not tokenizer.chat_template:
        return tokenizer(text)["input_ids"], False
    messages = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False), True
