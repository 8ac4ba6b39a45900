"""The command line of inference_example.py, checked as a whole before anything heavy is imported."""

from argparse import Namespace
from pathlib import Path

from colossal_llama.utils.cli import (
    MAX_SEED,
    CollectingArgumentParser,
    decodable_text,
    existing_file,
    number_in_range,
    parse_bool,
)


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """Parses and checks; exits with code 2 and every problem when there is one."""
    parser = CollectingArgumentParser(
        description="Runs a model: completes a text, answers a question, chats, or answers a file of prompts."
    )
    _add_model(parser)
    _add_prompt(parser)
    _add_generation(parser)
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    parser.finish()
    if arguments.prompt_style is None:
        arguments.prompt_style = "sft" if arguments.interactive else "pretrained"
    return arguments


def _add_model(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model_path", required=True, help="directory of a model or of a peft adapter, or hub name")
    group.add_argument("--device", help="cpu, cuda:0, … (default: cuda:0, or cpu where there is no CUDA device)")
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "float16", "bfloat16"),
        default="auto",
        help="of the weights; auto: as stored",
    )


def _add_prompt(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("prompt: one of --input_txt, --interactive, --input_file")
    group.add_argument("--input_txt", type=decodable_text, help="the text to complete or the question to answer")
    group.add_argument("--interactive", action="store_true", help="chat on standard input, with history")
    group.add_argument(
        "--input_file",
        type=existing_file,
        help='.jsonl of prompts: {"source": str} with --prompt_style pretrained, else {"messages": [{"from": "human", '
        '"content": str}, …]} or another form that prepare_sft_dataset.py takes; a last answer in it is left out',
    )
    group.add_argument(
        "--output_file",
        type=Path,
        help='new .jsonl: records of --input_file with "generated", "generated_tokens", "stopped"',
    )
    group.add_argument(
        "--prompt_style",
        choices=("pretrained", "sft"),
        help="pretrained: for base models, the text followed by a blank line, -> and a blank line; sft: for models "
        "fine-tuned on prepare_sft_dataset.py's conversations (default: pretrained; sft with --interactive)",
    )
    group.add_argument(
        "--llama_version",
        type=int,
        choices=(2, 3),
        help="whose turn marks --prompt_style sft uses (default: 3 if the tokenizer has <|eot_id|>, else 2)",
    )
    group.add_argument(
        "--chat_template",
        type=_chat_template,
        metavar="FILE",
        help="for models fine-tuned on data that was prepared with --chat_template: the same Jinja file, or "
        "'tokenizer' for "
        "the tokenizer's own template",
    )
    group.add_argument(
        "--system",
        type=decodable_text,
        help="system sentence for --prompt_style sft, instead of the one of preparation",
    )


def _add_generation(parser: CollectingArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max_new_tokens", type=number_in_range(int, minimum=1), default=512, help="most tokens of an answer"
    )
    group.add_argument(
        "--do_sample", type=parse_bool, default=True, help="True: draw the next token; False: the likeliest"
    )
    group.add_argument("--temperature", type=number_in_range(float, above=0), default=0.3, help="of sampling")
    group.add_argument(
        "--top_k", type=number_in_range(int, minimum=0), default=50, help="likeliest tokens to draw from; 0: all"
    )
    group.add_argument(
        "--top_p",
        type=number_in_range(float, above=0, maximum=1),
        default=0.95,
        help="draw from the likeliest tokens that have this probability together; 1: all",
    )
    group.add_argument(
        "--seed",
        type=number_in_range(int, minimum=0, maximum=MAX_SEED),
        help="makes sampling repeatable; prompt i of --input_file gets seed + i (default: none)",
    )


def _check(parser: CollectingArgumentParser, arguments: Namespace) -> None:
    given = [n for n in ("input_txt", "interactive", "input_file") if getattr(arguments, n) not in (None, False)]
    if len(given) != 1:
        what = " and ".join(f"--{name}" for name in given) + " are given together" if given else "no prompt is given"
        parser.problem(f"{what}: give one of --input_txt TEXT, --interactive, --input_file FILE")
    if (arguments.input_file is None) != (arguments.output_file is None):
        parser.problem("--input_file and --output_file go together: give both or neither")
    if arguments.output_file is not None and arguments.output_file.exists():
        parser.problem(f"--output_file {arguments.output_file} exists already: give a new name")
    elif arguments.output_file is not None and not arguments.output_file.parent.is_dir():
        parser.problem(f"--output_file: the directory {arguments.output_file.parent} does not exist")
    if arguments.interactive and arguments.prompt_style == "pretrained":
        parser.problem("--interactive needs --prompt_style sft: a base model does not take turns")
    is_sft = arguments.prompt_style == "sft" or arguments.interactive
    if arguments.llama_version is not None and arguments.chat_template is not None:
        parser.problem("--llama_version has no effect with --chat_template, which decides the format: leave one out")
    for name in ("system", "llama_version", "chat_template"):
        if getattr(arguments, name) is not None and not is_sft:
            parser.problem(f"--{name} belongs to --prompt_style sft")


def _chat_template(text: str) -> str:
    return text if text == "tokenizer" else str(existing_file(text))
