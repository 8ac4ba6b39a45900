"""Evaluates a model by lm-evaluation-harness, on two tasks of local files and without a network.

    python lm_eval_client.py --model DIR --texts T.jsonl --contexts C.jsonl --pairs P.jsonl
        [--conversations M.jsonl] --output O.json

One task sums the log-likelihoods of texts, each behind another text or at the beginning. The other
answers greedily, at most `--max_new_tokens` tokens: the conversations, rendered by the harness with
the model's chat template; without them, the contexts. Imports nothing of this project.
"""

import argparse
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

_TASKS = {
    "likelihoods": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{continuation}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "",
        "metric_list": [{"metric": "bypass"}],
    },
}


def main() -> None:
    """Writes versions, ids of texts and chats, log-likelihoods and answers, as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a model or an adapter")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    for name, content in (
        ("texts", "texts to tokenize"),
        ("contexts", "texts to continue"),
        ("pairs", "lists of a text and its continuation, whose log-likelihood is asked for"),
        ("conversations", "conversations to answer"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=f"{content}, one JSON value a line")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="of each answer")
    options = parser.parse_args()
    harness = open_model(options.model)
    # The harness leaves BOS to the tokenizer; this one may not set it.
    bos = harness.tokenizer.bos_token or ""
    begin = "" if harness.tok_encode("a")[:1] == [harness.tokenizer.bos_token_id] else bos
    contexts = [begin + text for text in lines(options.contexts)]
    answer: dict[str, Any] = {"versions": {name: version(name) for name in ("lm_eval", "transformers", "torch")}}
    answer["ids"] = [harness.tok_encode(text, add_special_tokens=False) for text in lines(options.texts)]
    if options.conversations:
        contexts = [harness.apply_chat_template(messages) for messages in lines(options.conversations)]
        answer["chats"] = [harness.tok_encode(context) for context in contexts]
    pairs = [(context and begin + context, continuation) for context, continuation in lines(options.pairs)]
    found = evaluate(harness, {"likelihoods": pairs, "answers": [(text, "") for text in contexts]}, options)
    answer["log_likelihoods"] = [sample["filtered_resps"][0][0] for sample in found["likelihoods"]]
    answer["answers"] = [sample["filtered_resps"][0] for sample in found["answers"]]
    options.output.write_text(json.dumps(answer), encoding="utf-8")


def open_model(directory: Path) -> HFLM:
    """Opens a model in fp32, or an adapter on the base that it names, with its own tokenizer."""
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 1}
    if (adapter := directory / "adapter_config.json").is_file():
        base = json.loads(adapter.read_text())["base_model_name_or_path"]
        return HFLM(pretrained=base, peft=str(directory), tokenizer=str(directory), **settings)
    return HFLM(pretrained=str(directory), **settings)


def lines(path: Path) -> list[Any]:
    """Reads one JSON value a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def evaluate(
    harness: HFLM, documents: dict[str, list[tuple[str, str]]], options: argparse.Namespace
) -> dict[str, list[dict]]:
    """Writes tasks and their documents, evaluates them, and returns each task's samples."""
    with tempfile.TemporaryDirectory() as directory:
        for name, pairs in documents.items():
            data = Path(directory, f"{name}.jsonl")
            records = [dict(zip(("context", "continuation"), pair, strict=True)) for pair in pairs]
            data.write_text("".join(json.dumps(record) + "\n" for record in records))
            task = {"task": name, "dataset_path": "json", "test_split": "test", **_TASKS[name]}
            task["dataset_kwargs"] = {"data_files": {"test": str(data)}, "cache_dir": directory}
            if name == "answers":
                limits = {"until": [], "do_sample": False, "max_gen_toks": options.max_new_tokens}
                task["generation_kwargs"] = limits
            Path(directory, f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
        tasks = TaskManager(include_path=directory, include_defaults=False)
        names: list[Any] = list(documents)
        result = simple_evaluate(harness, tasks=names, task_manager=tasks, log_samples=True, bootstrap_iters=0)
    assert result is not None, "there is one process"
    return {name: sorted(result["samples"][name], key=lambda sample: sample["doc_id"]) for name in names}


if __name__ == "__main__":
    main()
