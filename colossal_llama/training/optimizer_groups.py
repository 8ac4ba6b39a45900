"""Parameter groups of a run: layers, embeddings and new rows, by their learning rates."""

from typing import Any

import torch

from colossal_llama.engine.parameter_groups import EMBEDDINGS, LAYERS, NewRows, ParameterGroup
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.inputs import RunInputs
from colossal_llama.training.trained_parameters import learning_rate_ratios, what_is_trained


def parameter_groups(
    arguments: TrainingArguments, inputs: RunInputs, model: torch.nn.Module
) -> tuple[ParameterGroup, ...]:
    """Groups of the parameters that require gradients; none where one learning rate is for all.

    Args:
        arguments: of the run.
        inputs: say where the new rows are.
        model: before it is prepared by the plugin.
    """
    optimizer, new_rows = arguments.optimizer, _new_rows(arguments, inputs)
    if optimizer.embedding_lr is None and new_rows is None:
        return ()
    ids = {id(parameter) for parameter in _embeddings(model)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = [parameter for parameter in trained if id(parameter) not in ids]
    embeddings = [parameter for parameter in trained if id(parameter) in ids]
    ratio = learning_rate_ratios(arguments).get("embeddings", 1.0)
    groups = (ParameterGroup(LAYERS, layers), ParameterGroup(EMBEDDINGS, embeddings, ratio, new_rows))
    return tuple(group for group in groups if group.parameters)


def _new_rows(arguments: TrainingArguments, inputs: RunInputs) -> NewRows | None:
    """The new rows; None where they are trained as the others are."""
    optimizer, method = arguments.optimizer, arguments.method
    alone = what_is_trained(method) == "new_rows" or method.lora_new_rows
    if not alone and optimizer.new_row_lr is None:
        return None
    assert inputs.new_rows is not None, "open_inputs has refused such options without new rows"
    ratio = learning_rate_ratios(arguments)["new_rows"]
    return NewRows(inputs.new_rows.start, inputs.new_rows.stop, ratio, others_are_frozen=alone)


def _embeddings(model: Any) -> list[torch.nn.Parameter]:
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
