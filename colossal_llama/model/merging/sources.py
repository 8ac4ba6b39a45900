"""Models to merge, opened and compared: what does not fit together is refused at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.model.architectures import head_width, key_value_heads, trainable_architecture, window_tokens
from colossal_llama.model.config_file import CONFIG_FILE, read_generation_config, read_model_config
from colossal_llama.model.weights.adapter_files import is_adapter
from colossal_llama.model.weights.llama_tensors import check_tensors
from colossal_llama.model.weights.model_tensors import INPUT_MATRIX, OUTPUT_MATRIX, are_equal, open_files, stored_names
from colossal_llama.model.weights.stored_tensors import ARITHMETIC_TYPES, TensorShape
from colossal_llama.model.weights.weight_files import WeightShard, find_weight_files
from colossal_llama.model.weights.written_model import check_written_model
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.cli import PROGRAM
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_RUN_MODEL = "modelling"
"""Directory of the model in that of a run or a checkpoint."""
_LEAST_SHARED = 0.9
"""Share of the smaller vocabulary that two models of one family have in common."""


@dataclass(frozen=True)
class MergeSource:
    """A model to merge.

    Attributes:
        name: as it was given, or `base`.
        directory: its files.
        config: checked config.json.
        shards: its weight files.
        names: the model's names of its tensors, in order, and those in its files.
        shapes: by the model's names.
        is_tied: True where the output embeddings are the input embeddings.
        tokenizer: its tokenizer.
        vocabulary: token → id.
    """

    name: str
    directory: Path
    config: dict[str, Any]
    shards: tuple[WeightShard, ...]
    names: Mapping[str, str]
    shapes: Mapping[str, TensorShape]
    is_tied: bool
    tokenizer: "PreTrainedTokenizerFast"
    vocabulary: Mapping[str, int]

    @property
    def rows(self) -> int:
        """Rows of the embeddings."""
        return self.config["vocab_size"]

    def stored_name(self, name: str) -> str:
        """Name of a tensor in the files; the input matrix for the output matrix that is tied."""
        return self.names[INPUT_MATRIX if name == OUTPUT_MATRIX and self.is_tied else name]


def open_sources(directories: Mapping[str, Path]) -> tuple[MergeSource, ...]:
    """Opens and checks models, in the order given.

    Args:
        directories: by name; the first is what the others are compared with.

    Raises:
        UserError: the problems of all models, or all differences between them.
    """
    sources, problems = [], []
    for name, directory in directories.items():
        try:
            sources.append(_open(name, directory))
        except UserError as error:
            problems += error.problems
    if not problems:
        problems = [problem for source in sources[1:] for problem in _differences(sources[0], source)]
    if problems:
        raise UserError(problems)
    return tuple(sources)


def _open(name: str, directory: Path) -> MergeSource:
    if is_adapter(directory):
        raise UserError(
            f"{directory} is a LoRA adapter, not a model: merge it into its base first, {PROGRAM} export_model "
            f"--model_path {directory} --merge --output_dir DIR, and give DIR"
        )
    if not (directory / CONFIG_FILE).is_file() and (directory / _RUN_MODEL).is_dir():
        raise UserError(f"{directory} is the directory of a run: give its model, {directory / _RUN_MODEL}")
    config = read_model_config(directory)
    trainable_architecture(config["model_type"], directory)
    if config.get("quantization_config"):
        raise UserError(f"{directory} is a quantized model: give the model that it was made from")
    read_generation_config(directory)
    shards = find_weight_files(directory, index_may_name_more=True).shards
    found = {name: shape for shard in shards for name, shape in shard.tensors.items()}
    check_tensors(directory, {name: shape.shape for name, shape in found.items()}, config)
    names, _ = stored_names(config, found)
    shapes = {name: found[stored] for name, stored in names.items()}
    if integers := [name for name, shape in shapes.items() if shape.dtype not in ARITHMETIC_TYPES]:
        raise UserError(
            f"{directory} stores {integers[0]} as {shapes[integers[0]].dtype_name}: quantized weights cannot be added; "
            "give the model that it was made from"
        )
    tokenizer = load_tokenizer(directory)
    vocabulary = tokenizer.get_vocab()
    ids, rows = max(vocabulary.values()) + 1, config["vocab_size"]
    if ids > rows:
        raise UserError(
            f"the tokenizer in {directory} has {ids:,} ids, the model rows for {rows:,} only: take the tokenizer that "
            "belongs to this model"
        )
    check_written_model(directory)
    is_tied = _is_tied(directory, config, shards, names)
    return MergeSource(name, directory, config, shards, names, shapes, is_tied, tokenizer, vocabulary)


def _is_tied(
    directory: Path, config: dict[str, Any], shards: tuple[WeightShard, ...], names: Mapping[str, str]
) -> bool:
    if not config.get("tie_word_embeddings"):
        return False
    if OUTPUT_MATRIX in names:
        with open_files(shards) as (_, read):
            if not are_equal(read(names[INPUT_MATRIX]), lambda: read(names[OUTPUT_MATRIX])):
                raise UserError(
                    f"config.json in {directory} ties {OUTPUT_MATRIX} to {INPUT_MATRIX} (tie_word_embeddings), and the "
                    "files hold both with other values: set it to false, or remove the tensor that is wrong"
                )
    return True


def _differences(one: MergeSource, other: MergeSource) -> Iterator[str]:
    """Settings and vocabularies that keep two models from being added, a sentence each."""
    pair = f"{one.directory} and {other.directory} cannot be merged"
    first, second = _settings(one.config), _settings(other.config)
    if first["model_type"] != second["model_type"]:
        yield f"{pair}: they are of the types {first['model_type']} and {second['model_type']}"
        return
    for key, value in first.items():
        if value != second[key]:
            why = "; weights trained for other rotary embeddings mean something else" if key.startswith("rope") else ""
            yield f"{pair}: {key} is {value} and {second[key]}{why}"
    known, others = one.vocabulary.keys(), other.vocabulary.keys()
    shared, smaller = len(known & others), min(len(known), len(others))
    if shared < _LEAST_SHARED * smaller:
        yield (
            f"{pair}: their tokenizers share {shared:,} of {smaller:,} tokens, so that they are not of one family: "
            "give models that were trained from the same base"
        )


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that decide what the weights mean, with those that config.json lacks."""
    architecture = trainable_architecture(config["model_type"], CONFIG_FILE)
    complete = architecture.complete(config)
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {
        "model_type": config["model_type"],
        **{key: getattr(complete, key) for key in sizes},
        "num_key_value_heads": key_value_heads(complete),
        "head_dim": head_width(complete),
        "hidden_act": getattr(complete, "hidden_act", "silu"),
        **{f"bias of {layer}": architecture.has_bias(layer, complete) for layer in ("q_proj", "o_proj", "gate_proj")},
        "sliding_window": window_tokens(complete) if getattr(complete, "use_sliding_window", True) else None,
        "rope_theta": float(getattr(complete, "rope_theta", None) or 10_000.0),
        "rope_scaling": _scaling(getattr(complete, "rope_scaling", None)),
    }


def _scaling(scaling: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Scaling of the rotary embeddings with one name for its type; None for none."""
    given = {key: value for key, value in (scaling or {}).items() if value is not None}
    kind = given.pop("type", given.pop("rope_type", "default"))
    return None if kind == "default" else {"rope_type": kind, **dict(sorted(given.items()))}


def notes(sources: Sequence[MergeSource]) -> Iterator[str]:
    """Differences between models that are no obstacle, a sentence each."""
    ties = {source.is_tied for source in sources}
    if len(ties) > 1:
        untied = ", ".join(source.name for source in sources if not source.is_tied)
        yield (
            f"the embeddings are tied in some models and not in {untied}: the result has two matrices, and the tied "
            "matrix counts for both"
        )
    for key in ("rms_norm_eps", "max_position_embeddings"):
        values = {source.name: source.config.get(key) for source in sources}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{name} {value}" for name, value in values.items())
            yield f"{key} differs ({shown}): the result has that of the model whose tokenizer it has"
