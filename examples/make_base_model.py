"""Makes the quick start's base model: a tiny random LLaMA with an English sentencepiece tokenizer.

The tokenizer is built like LLaMA-2's (BPE with byte fallback, a space before the first word, <unk>
<s> </s> = 0 1 2) on the English part of the example alone, with the full-width punctuation that
LLaMA-2 knows too. So it stands about where LLaMA-2 stands with Chinese: the characters fall to
bytes.
"""

import argparse
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run by its path: the project's root is the import root

from colossal_llama.utils.atomic_io import atomic_directory, write_bytes, write_json
from colossal_llama.utils.cli import CollectingArgumentParser, existing_directory, number_in_range
from colossal_llama.utils.errors import UserError, run_main

FULL_WIDTH_PUNCTUATION = "，。：；！？、“”"
SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def main() -> None:
    """Trains the tokenizer and writes it with a random model."""
    arguments = parse_arguments()
    texts = english_texts(arguments.data_input_dir)
    tokenizer_model = train_tokenizer(texts, arguments.vocabulary_size)
    try:
        with atomic_directory(arguments.output_dir) as directory:
            save_tokenizer(directory, tokenizer_model, arguments.max_positions)
            parameters = save_random_model(directory, arguments)
    except FileExistsError as error:
        raise UserError(f"--output_dir: {error}; name a new directory or delete it") from error
    print(
        f"base model: {parameters:,} random parameters, {arguments.vocabulary_size:,} pieces learned from "
        f"{len(texts)} English lines, in {arguments.output_dir}"
    )


def parse_arguments() -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = CollectingArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="new directory for the model and its tokenizer")
    parser.add_argument(
        "--data_input_dir",
        type=existing_directory,
        default=Path(__file__).resolve().parent / "pretrain",
        help="directory of .jsonl files; the tokenizer learns from those named en_*.jsonl",
    )
    parser.add_argument(
        "--vocabulary_size", type=number_in_range(int, minimum=300), default=1000, help="pieces, 259 of them fixed"
    )
    parser.add_argument(
        "--hidden_size", type=number_in_range(int, minimum=8), default=128, help="width; a multiple of 32"
    )
    parser.add_argument("--num_layers", type=number_in_range(int, minimum=1), default=4, help="decoder layers")
    parser.add_argument(
        "--max_positions", type=number_in_range(int, minimum=16), default=512, help="longest input, in tokens"
    )
    parser.add_argument("--seed", type=number_in_range(int, minimum=0), default=42, help="of the random weights")
    arguments = parser.parse_args()
    if arguments.hidden_size % 32:
        parser.problem(
            f"--hidden_size {arguments.hidden_size} is not a multiple of 32, the width of one attention head"
        )
    parser.finish()
    return arguments


def english_texts(directory: Path) -> list[str]:
    """Reads the titles and texts of `en_*.jsonl`, by lines: newlines stay bytes, as in LLaMA-2.

    Raises:
        UserError: there is no such file.
    """
    files = sorted(directory.glob("en_*.jsonl"))
    if not files:
        raise UserError(f"{directory} holds no en_*.jsonl from which the base tokenizer could learn English")
    records = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    lines = [line for record in records for text in (record["source"], record["target"]) for line in text.splitlines()]
    return [line for line in lines if line and line != "->"]


def train_tokenizer(texts: list[str], vocabulary_size: int) -> bytes:
    """A serialized sentencepiece BPE model with LLaMA-2's settings.

    Raises:
        UserError: the texts do not give so many pieces.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*texts, FULL_WIDTH_PUNCTUATION]),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary_size,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,  # the same pieces on every machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"--vocabulary_size {vocabulary_size}: {error}") from error
    return model.getvalue()


def save_tokenizer(directory: Path, model: bytes, max_positions: int) -> None:
    """Writes the three files of a LLaMA-2 tokenizer directory."""
    write_bytes(directory / "tokenizer.model", model)
    write_json(directory / "special_tokens_map.json", SPECIAL_TOKENS)
    configuration = {
        **SPECIAL_TOKENS,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": max_positions,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    write_json(directory / "tokenizer_config.json", configuration)


def save_random_model(directory: Path, arguments: argparse.Namespace) -> int:
    """Saves a random `LlamaForCausalLM` (fp32, embeddings not tied); returns its parameter count.

    Heads are 32 wide; every two query heads share a key-value head, as in the larger LLaMAs.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(arguments.seed)
    heads = arguments.hidden_size // 32
    configuration = LlamaConfig(
        vocab_size=arguments.vocabulary_size,
        hidden_size=arguments.hidden_size,
        intermediate_size=arguments.hidden_size * 8 // 3 // 32 * 32,
        num_hidden_layers=arguments.num_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 or 1,
        max_position_embeddings=arguments.max_positions,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        torch_dtype=torch.float32,
    )
    model = LlamaForCausalLM(configuration)
    model.save_pretrained(directory)
    return model.num_parameters()


if __name__ == "__main__":
    run_main(main)
