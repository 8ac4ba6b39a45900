"""Table client × model: token ids and greedy answers of other programs beside the suite's own.

Makes the models by the suite's scripts, each client's environment, and the table:

    python -m benchmarks.clients --shared_data DIR [--real_model DIR] --work_dir DIR

Each client opens the model by its own code (`*_client.py`). It gets 2,000 texts, 40 prompts as
token ids, and conversations for its own chat template. A greedy answer that differs first at a
token whose logit is less than 0.02 above the second is counted as a near tie. The harness for
evaluations computes log-likelihoods, too, and a trainer the targets of whole conversations.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.clients.compare import Reference, compare, our_reference, write_requests
from benchmarks.clients.environment import client_environment
from benchmarks.clients.models import (
    ModelMaker,
    TriedModel,
    random_models,
    read_conversations,
    read_texts,
    read_trained,
    real_models,
)
from benchmarks.clients.programs import CLIENTS, Client


def main() -> None:
    """Makes models and environments, asks every client about every model, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared_data", type=Path, required=True, help="real tokenizers, pieces, texts, conversations")
    parser.add_argument("--real_model", type=Path, help="a trained LLaMA with a chat template (SmolLM2)")
    parser.add_argument("--work_dir", type=Path, required=True, help="models and answers; what is there is used again")
    parser.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="clients to ask")
    parser.add_argument("--models", nargs="+", help="models to try, by name (default: all)")
    parser.add_argument("--texts", type=int, default=2000, help="texts to tokenize")
    parser.add_argument("--prompts", type=int, default=40, help="prompts to continue")
    parser.add_argument("--max_new_tokens", type=int, default=32, help="tokens of an answer")
    options = parser.parse_args()
    work = options.work_dir.resolve()
    work.mkdir(parents=True, exist_ok=True)
    texts = read_texts(options.shared_data, options.texts)
    conversations = read_conversations(options.shared_data, options.prompts)
    maker = ModelMaker(work, options.shared_data.resolve())
    makers = dict(random_models(maker))
    if options.real_model:
        makers |= real_models(maker, options.real_model.resolve())
    rows: list[dict[str, str]] = []
    for name in options.models or makers:
        model = makers[name]()
        reference = our_reference(model, texts, conversations, options.prompts, options.max_new_tokens)
        requests = work / "requests" / model.name.replace(" ", "-")
        trained = read_trained(work, options.shared_data) if model.chats else []
        write_requests(requests, texts, conversations if model.chats else [], reference, trained)
        for client in (CLIENTS[key] for key in options.clients):
            if client.opens(model):
                rows.append(ask(client, model, reference, requests, options.max_new_tokens))
                print(json.dumps(rows[-1]), flush=True)
    (work / "table.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))


def ask(client: Client, model: TriedModel, reference: Reference, requests: Path, max_new_tokens: int) -> dict[str, str]:
    """Runs a client in its environment on one model; returns the cells of its row."""
    python = client_environment(client.name, client.requirements, client.unresolved)
    opened = client.prepare(model, requests.parent.parent)
    output = requests / f"{client.name}.json"
    output.unlink(missing_ok=True)
    words = [python, Path(__file__).with_name(client.script), "--model", opened, "--output", output]
    files = {name: requests / f"{name}.jsonl" for name in client.requests if name != "conversations" or model.chats}
    words += [word for name, file in files.items() for word in (f"--{name}", file)]
    words += ["--max_new_tokens", max_new_tokens]
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(list(map(str, words)), env=variables, capture_output=True, text=True, check=False)
    row = {"model": model.name, "client": client.title}
    if done.returncode:
        (requests / f"{client.name}.log").write_text(done.stdout + done.stderr)
        return {**row, "versions": "", "failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    answer = json.loads(output.read_text())
    versions = ", ".join(f"{package} {version}" for package, version in answer["versions"].items())
    further = {key: str(value) for key, value in answer.get("further", {}).items()}
    return {**row, "versions": versions, **compare(reference, answer), **further}


def table(rows: list[dict[str, str]]) -> str:
    """Formats the rows as a Markdown table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, ["---"] * len(columns), *([row.get(column, "") for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
