"""The order of work of an evaluation: models one after the other, then tables and a figure."""

from colossal_llama.evaluation.arguments import EvaluationArguments


def evaluate(arguments: EvaluationArguments) -> None:
    """Evaluates the models of the arguments."""
    raise NotImplementedError
