"""Evaluates models: benchmarks, bits per byte of texts, answers side by side."""

from colossal_llama.evaluation.arguments import parse_arguments
from colossal_llama.utils.cli import InvalidArguments
from colossal_llama.utils.distributed_env import adopt_slurm_variables, is_multi_host, launcher_problems
from colossal_llama.utils.errors import UserError


def main() -> None:
    """Parses the arguments, and evaluates the models one after the other.

    Raises:
        UserError: the launcher's variables are wrong, or arguments on one host of several.
    """
    adopt_slurm_variables()
    if problems := launcher_problems():
        raise UserError(problems)
    try:
        arguments = parse_arguments()
    except InvalidArguments as error:
        if is_multi_host():  # where the parser leaves the printing to its caller
            raise UserError(error.problems) from None
        raise
    from colossal_llama.evaluation.run import evaluate

    evaluate(arguments)
