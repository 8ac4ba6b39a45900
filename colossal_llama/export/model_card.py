"""Model card (README.md): YAML metadata, how to use the model, and what its records say of it.

What is not recorded is left out, or called so. No path of this host is written.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colossal_llama.export.arguments import CardArguments
from colossal_llama.export.lineage import Lineage, Stage
from colossal_llama.export.source import ExportSource, name_of

CARD_FILE = "README.md"
_NOT_RECORDED = "not recorded"
_NO_SETTINGS = ("pretrained", "dataset", "eval_dataset", "load_checkpoint", "config_file", "dry_run_processes")
_SETTINGS_OF_RUNS = (
    "save_",
    "keep_last",
    "skip_save",
    "tensorboard_dir",
    "eval_task",
    "benchmark",
    "num_samples",
    "dry_run",
)
_SWITCHES = {"lora_": "lora_rank", "neft_": "use_neft"}
"""Options that have no effect without another."""
_CHAT = """\
messages = [{"role": "user", "content": "Hi"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)"""
_PLAIN = """\
ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]"""


def model_card(options: CardArguments, source: ExportSource, lineage: Lineage, record: Mapping[str, Any]) -> str:
    """Text of the card.

    Args:
        options: what the user said of licence, languages and base.
        source: the model or adapter.
        lineage: runs, data and reports found.
        record: of the export (`export.json`).
    """
    title, is_chat = record["name"], source.has_chat_template
    first = name_of(lineage.base) if lineage.base and record["kind"] != "adapter" else None
    base = options.base_model or first or record["base"]
    license_id = options.license or base_license((source.directory, source.base, *lineage.directories))
    sections = [
        _front_matter(options, base, license_id, record, is_chat),
        f"# {_text(title)}",
        _summary(base, source, lineage, record),
        f"## Use\n\n{_use(title, base, record, is_chat)}",
        *(_stage(number, stage, len(lineage.stages)) for number, stage in enumerate(lineage.stages, 1)),
        _tokenizer(lineage, source.config["vocab_size"]),
        _evaluation(lineage),
        f"## Licence\n\n{_licence(options, license_id, base)}",
        f"Written by `colossal-llama export_model` {record['version']}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(
    options: CardArguments, base: str | None, license_id: str | None, record: Mapping[str, Any], is_chat: bool
) -> str:
    """YAML metadata; JSON strings and lists are YAML, whatever they contain."""
    fields = {
        "license": license_id,
        "base_model": base,
        "language": list(options.language),
        "library_name": "peft" if record["kind"] == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["colossal-llama", *(["conversational"] if is_chat else []), *(["gguf"] if record["gguf"] else [])],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items() if value]
    return "\n".join(("---", *lines, "---"))


def base_license(directories: Iterable[Path]) -> str | None:
    """The licence in the metadata of the model cards that lie in directories; the first counts."""
    import yaml
    from huggingface_hub import ModelCard

    for directory in directories:
        if not (directory / CARD_FILE).is_file():
            continue
        try:
            found = ModelCard.load(directory / CARD_FILE, ignore_metadata_errors=True).data.to_dict().get("license")
        except (OSError, ValueError, yaml.YAMLError):
            continue  # a card that others wrote, without metadata that can be read
        if isinstance(found, str):
            return found
    return None


def _summary(base: str | None, source: ExportSource, lineage: Lineage, record: Mapping[str, Any]) -> str:
    config = source.config
    kind = {"adapter": "LoRA adapter", "merged": "Model with a merged LoRA adapter", "model": "Model"}[record["kind"]]
    tokens = [total for stage in lineage.stages if (total := _last(stage, "tokens_seen")) is not None]
    trained = f"{sum(tokens):,} tokens seen in {len(tokens)} run{'s' if len(tokens) > 1 else ''}" if tokens else None
    rows = [
        ("kind", kind),
        ("base model", base or _NOT_RECORDED),
        ("training", trained or _NOT_RECORDED),
        ("architecture", config["model_type"]),
        ("layers, width, heads", _shape(config)),
        ("vocabulary", f"{config['vocab_size']:,} rows"),
        ("context", f"{config['max_position_embeddings']:,} tokens" if config.get("max_position_embeddings") else None),
        ("values", f"{record['values']:,} ({', '.join(record['dtypes'])})"),
        ("embeddings", "input and output tied" if record["tied_embeddings"] else None),
    ]
    return _table(("", ""), [row for row in rows if row[1]])


def _shape(config: Mapping[str, Any]) -> str:
    return f"{config['num_hidden_layers']}, {config['hidden_size']:,}, {config['num_attention_heads']}"


def _use(title: str, base: str | None, record: Mapping[str, Any], is_chat: bool) -> str:
    name = json.dumps(title, ensure_ascii=False)
    is_adapter = record["kind"] == "adapter"
    imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    load = ['model = AutoModelForCausalLM.from_pretrained(name, torch_dtype="auto")']
    if is_adapter:
        imports.insert(0, "from peft import PeftModel")
        base_name = json.dumps(base or "BASE_MODEL", ensure_ascii=False)
        load = [f'base = AutoModelForCausalLM.from_pretrained({base_name}, torch_dtype="auto")']
        load.append("model = PeftModel.from_pretrained(base, name)")
    code = [
        *imports,
        "",
        f"name = {name}  # path of this directory, or its name on a hub",
        "tokenizer = AutoTokenizer.from_pretrained(name)",
        *load,
        _CHAT if is_chat else _PLAIN,
        "output = model.generate(ids, max_new_tokens=100)",
        "print(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))",
    ]
    what = "It answers conversations in the format of its chat template:" if is_chat else "It completes texts:"
    text = f"{what}\n\n```python\n" + "\n".join(code) + "\n```"
    if record["gguf"]:
        file = record["gguf"]["file"]
        text += f"\n\nWith llama.cpp:\n\n```bash\nllama-{'server' if is_chat else 'cli'} -m {_quoted(file)}\n```"
    return text


def _stage(number: int, stage: Stage, count: int) -> str:
    """A run: its data, options, losses and software."""
    title = f"## Training, run {number} of {count}" if count > 1 else "## Training"
    parts = [title, _run_facts(stage)]
    for manifest, names in stage.manifests:
        parts.append(_data(manifest, names))
    if not stage.manifests:
        parts.append(f"Data by category: {_NOT_RECORDED}.")
    parts += [_losses(stage), _answers(stage)]
    if settings := list(_settings(stage.arguments)):
        parts.append("Options of the run:\n\n" + _table(("option", "value"), settings))
    return "\n\n".join(part for part in parts if part)


def _run_facts(stage: Stage) -> str:
    configuration, arguments = stage.configuration, stage.arguments
    if not configuration and not stage.metrics:
        return f"Options and losses: {_NOT_RECORDED}."
    started_with = arguments.get("load_checkpoint") if _is_weights(arguments) else arguments.get("pretrained")
    tokens, targets = _last(stage, "tokens_seen"), _last(stage, "target_tokens_seen")
    versions = configuration.get("versions")
    rows = [
        ("began with", name_of(started_with) if started_with else _NOT_RECORDED),
        ("steps", f"{stage.metrics[-1]['step']:,}" if stage.metrics else _NOT_RECORDED),
        ("tokens seen", f"{tokens:,}" if tokens is not None else _NOT_RECORDED),
        ("of them in the loss", f"{targets:,}" if targets is not None else _NOT_RECORDED),
        ("processes", f"{configuration['world_size']} ({configuration.get('device', '?')})" if configuration else None),
        ("software", ", ".join(f"{name} {version}" for name, version in versions.items()) if versions else None),
    ]
    return _table(("", ""), [row for row in rows if row[1]])


def _is_weights(arguments: Mapping[str, Any]) -> bool:
    loaded = arguments.get("load_checkpoint")
    return isinstance(loaded, str) and Path(loaded).name.startswith("modelling")


def _data(manifest: Mapping[str, Any], names: Sequence[str]) -> str:
    rows = []
    for name, counts in manifest["categories"].items():
        rows.append([name, counts.get("documents", 0), counts.get("tokens_out", 0), counts.get("target_tokens", 0)])
    if len(rows) > 1:
        rows.append(["total", *(sum(row[column] for row in rows) for column in (1, 2, 3))])
    table = _table(("category", "documents", "tokens", "in the loss"), rows)
    used, parts = set(names), manifest["parts"]
    if len(used) == len(parts):
        return f"Data by category, in {len(parts)} parts, once each:\n\n{table}"
    tokens = sum(part["tokens"] for part in parts if part["name"] in used)
    return (
        f"The run used {len(used)} of {len(parts)} parts of this data ({tokens:,} tokens), each of which has the whole "
        f"mixture. All parts by category, once each:\n\n{table}"
    )


def _losses(stage: Stage) -> str:
    with_loss = [entry for entry in stage.metrics if isinstance(entry.get("loss"), int | float)]
    if not with_loss:
        return f"Losses: {_NOT_RECORDED}." if stage.configuration else ""
    rows = [[f"loss, step {entry['step']:,}", entry["loss"]] for entry in (with_loss[0], with_loss[-1])]
    evaluated = [entry for entry in stage.metrics if isinstance(entry.get("eval_loss"), int | float)]
    ends = evaluated if len(evaluated) < 2 else [evaluated[0], evaluated[-1]]
    rows += [[f"validation loss, step {entry['step']:,}", entry["eval_loss"]] for entry in ends]
    last = with_loss[-1].get("loss_by_category")
    for name, loss in last.items() if isinstance(last, dict) else ():
        if isinstance(loss, int | float):
            rows.append([f"loss, step {with_loss[-1]['step']:,}, {name}", loss])
    return "Losses in nats per target token:\n\n" + _table(("", "loss"), rows)


def _answers(stage: Stage) -> str:
    """Shares of right answers to the questions of `--eval_tasks`, the first and the last."""
    asked = [entry for entry in stage.metrics if isinstance(entry.get("eval_task_accuracy"), dict)]
    rows = []
    for entry in asked if len(asked) < 2 else [asked[0], asked[-1]]:
        counts = entry.get("eval_task_questions")
        for task, share in entry["eval_task_accuracy"].items():
            count = counts.get(task) if isinstance(counts, dict) else None
            if isinstance(share, int | float) and isinstance(count, int):
                rows.append([f"step {entry['step']:,}", task, count, share])
    if not rows:
        return ""
    return "Benchmark questions that were asked during the training:\n\n" + _table(
        ("", "task", "questions", "share of right answers"), rows
    )


def _settings(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Options that describe the training; none that is off, or holds a path of the host."""
    for name, value in arguments.items():
        if name in _NO_SETTINGS or name.startswith(_SETTINGS_OF_RUNS) or value in (None, False, [], ""):
            continue
        switch = next((switch for prefix, switch in _SWITCHES.items() if name.startswith(prefix)), None)
        if switch is not None and not arguments.get(switch):
            continue
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        if os.sep not in shown:
            yield f"`--{name}`", shown


def _last(stage: Stage, key: str) -> int | None:
    found = [entry[key] for entry in stage.metrics if type(entry.get(key)) is int]
    return found[-1] if found else None


def _tokenizer(lineage: Lineage, rows: int) -> str:
    """Sizes and compression, from reports on a tokenizer of this size."""
    parts = []
    expansions = [report for report in lineage.records.expansions.values() if report.get("padded_vocab_size") == rows]
    if expansions:
        report = expansions[0]
        parts.append(
            f"The vocabulary was expanded from {report['source_vocab_size']:,} to {report['vocab_size']:,} tokens "
            f"({report['family']})."
        )
        if scripts := report.get("extended_pretokenizer", {}).get("scripts"):
            parts.append(
                f"Its pre-tokenizer keeps combining marks with letters of {', '.join(scripts)}. Programs that do not "
                "read `tokenizer.json` would give texts in these scripts other ids."
            )
    for report in lineage.records.tokenizer_reports.values():
        sizes = {name: entry["vocab_size"] for name, entry in report["tokenizers"].items()}
        if not any(size <= rows and (size == rows or expansions) for size in sizes.values()):
            continue
        table = [
            [name, entry["vocab_size"], entry["total"]["tokens_per_character"], entry["total"]["tokens_per_document"]]
            for name, entry in report["tokenizers"].items()
        ]
        documents = next(iter(report["tokenizers"].values()))["total"]["documents"]
        header = ("tokenizer", "vocabulary", "tokens per character", "tokens per document")
        parts.append(f"Measured on {documents:,} documents:\n\n{_table(header, table)}")
    return "## Tokenizer\n\n" + "\n\n".join(parts) if parts else ""


def _evaluation(lineage: Lineage) -> str:
    """Results of lm-evaluation-harness that lie among the records."""
    rows = []
    for report in lineage.records.evaluations.values():
        for task, results in report["results"].items():
            shots = report["n-shot"].get(task) if isinstance(report["n-shot"], dict) else None
            for key, value in results.items() if isinstance(results, dict) else ():
                metric, _, variant = key.partition(",")
                if isinstance(value, int | float) and not metric.endswith("_stderr"):
                    rows.append([task, "" if shots is None else shots, metric, variant, value])
    if not rows:
        return ""
    return "## Evaluation\n\nBy lm-evaluation-harness:\n\n" + _table(
        ("task", "shots", "metric", "filter", "value"), rows
    )


def _licence(options: CardArguments, license_id: str | None, base: str | None) -> str:
    if options.license:
        return _text(options.license)
    if license_id:
        return f"{_text(license_id)}, as the card of the base model {_text(base or '')} says.".replace("  ", " ")
    return f"Licence: {_NOT_RECORDED}. The licence of the base model applies to what is derived from it."


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool | str):
        return _text(str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _text(text: str) -> str:
    """A text of one line that Markdown and HTML take as it is; code in backticks stays code."""
    text = " ".join(text.split())
    if not re.fullmatch(r"`[\w-]+`", text):
        text = text.replace("&", "&amp;").replace("<", "&lt;")
        text = re.sub(r"([\\`*|\[\]#~]|(?<!\w)_|_(?!\w))", r"\\\1", text)  # an underscore within a word is one
    return text


def _quoted(name: str) -> str:
    import shlex

    return shlex.quote(name)
