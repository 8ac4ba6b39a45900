"""Trained parameters: all but some layers, the embeddings, or their new rows. Imports no torch."""

from typing import TYPE_CHECKING, Any

from colossal_llama.model.param_count import adapter_parameters, layer_parameters, parameters
from colossal_llama.training.arguments import MethodArguments, TrainingArguments

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def what_is_trained(method: MethodArguments) -> str:
    """`all`, `embeddings` or `new_rows`, whichever option says so."""
    return "embeddings" if method.freeze_non_embeds_params else method.train_only


def freezing_options(method: MethodArguments) -> list[str]:
    """The given options that freeze a part of the model, as on the command line; not LoRA."""
    given = {
        "--freeze_non_embeds_params": method.freeze_non_embeds_params,
        f"--train_only {method.train_only}": method.train_only != "all",
        f"--freeze_layers {method.freeze_layers}": method.freeze_layers > 0,
    }
    return [option for option, is_there in given.items() if is_there]


def new_row_options(arguments: TrainingArguments) -> list[str]:
    """The given options that need the rows of an expansion."""
    given = {
        "--train_only new_rows": what_is_trained(arguments.method) == "new_rows",
        "--new_row_lr": arguments.optimizer.new_row_lr is not None,
        "--lora_new_rows": arguments.method.lora_new_rows,
    }
    return [option for option, is_there in given.items() if is_there]


def learning_rate_ratios(arguments: TrainingArguments) -> dict[str, float]:
    """Peak learning rates over `--lr` of what is trained, by name; empty where one is for all.

    The names are `layers` (with LoRA: the adapters), `embeddings` and `new_rows`.
    """
    optimizer, trained = arguments.optimizer, what_is_trained(arguments.method)
    alone = trained == "new_rows" or arguments.method.lora_new_rows
    if trained == "all" and not alone and optimizer.embedding_lr is None and optimizer.new_row_lr is None:
        return {}
    ratios = {"layers": 1.0} if trained == "all" else {}
    if not alone:
        ratios["embeddings"] = (optimizer.embedding_lr or optimizer.lr) / optimizer.lr
    if alone or optimizer.new_row_lr is not None:
        ratios["new_rows"] = (optimizer.new_row_lr or optimizer.lr) / optimizer.lr
    return ratios


def freeze(method: MethodArguments, model: "PreTrainedModel", new_rows: range | None) -> str | None:
    """Freezes what is not trained, in place; without LoRA. Frozen rows keep their gradient here.

    Args:
        method: says what is trained.
        model: to be trained.
        new_rows: of the last expansion, for the sentence.

    Returns:
        A sentence for the start-up report; None where everything is trained.
    """
    trained, layers = what_is_trained(method), model.model.layers
    if trained != "all":
        model.requires_grad_(False)
        for embedding in (model.get_input_embeddings(), model.get_output_embeddings()):
            embedding.requires_grad_(True)
        rows = f"{describe_rows(new_rows)} of " if trained == "new_rows" and new_rows is not None else ""
        return f"training {rows}input and output embeddings only"
    for layer in layers[: method.freeze_layers]:
        layer.requires_grad_(False)
    count = method.freeze_layers
    return f"the first {count} of {len(layers)} layers are not trained" if count else None


def describe_rows(new_rows: range) -> str:
    """Describes new rows: "18,538 new rows, from 49,152 on,"."""
    return f"{len(new_rows):,} new rows, from {new_rows.start:,} on,"


def trained_parameters(method: MethodArguments, config: Any) -> int | None:
    """Number of trained parameters with LoRA or frozen layers; None where all are trained.

    Frozen rows count as trained: they have gradients and optimizer states, which are zero.
    """
    embeddings = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    if method.lora_rank:
        factors = adapter_parameters(config, method.lora_rank, method.lora_target_modules)
        return factors + (embeddings if method.lora_new_rows else 0)
    if what_is_trained(method) != "all":
        return embeddings
    if method.freeze_layers:
        return parameters(config) - method.freeze_layers * layer_parameters(config)
    return None


def trained_values(method: MethodArguments, config: Any, new_rows: range | None) -> int | None:
    """Number of trained values: as `trained_parameters`, but without frozen rows."""
    trained, alone = trained_parameters(method, config), what_is_trained(method) == "new_rows" or method.lora_new_rows
    if trained is None or new_rows is None or not alone:
        return trained
    frozen_rows = config.vocab_size - len(new_rows)
    return trained - frozen_rows * config.hidden_size * (1 if config.tie_word_embeddings else 2)
