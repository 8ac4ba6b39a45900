"""Loss per byte of a model on a text, comparable between tokenizers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from colossal_llama.model.attention.backends import attention_without_plans
from colossal_llama.model.loading import load_complete_model
from colossal_llama.readers.fields import FieldOptions
from colossal_llama.readers.formats import Format, format_of
from colossal_llama.readers.listing import InputFile
from colossal_llama.tokenizer.corpus import find_files, read_texts
from colossal_llama.tokenizer.encoding import TextEncoder
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.console import progress_bar
from colossal_llama.utils.errors import UserError

_LONGEST_SEGMENT = 1000  # characters


@dataclass(frozen=True)
class TextLoss:
    """Loss of a model on a text; `loss_per_byte` is in nats."""

    loss_per_byte: float
    tokens: int
    bytes: int


def read_evaluation_text(
    paths: Sequence[Path | str], limit_bytes: int, fields: FieldOptions | None = None
) -> list[str]:
    """Reads the documents of files, in the order of their paths; a text file is one document.

    Args:
        paths: files, and directories of files. A file whose ending says nothing is a text.
        limit_bytes: reading stops when the documents have this many UTF-8 bytes; the last one is
            truncated.
        fields: which columns of a record are read; None as without options.

    Raises:
        UserError: a record has no text, a file cannot be read, or there is no text in them.
    """
    kept: list[str] = []
    left = limit_bytes
    for document in read_texts(_files(paths), fields=fields, text_block_bytes=None):
        encoded = document.text.encode("utf-8")[:left]
        kept.append(encoded.decode("utf-8", errors="ignore"))
        left -= len(encoded)
        if left <= 0:
            break
    kept = [document for document in kept if document.strip()]
    if not kept:
        raise UserError(f"{', '.join(map(str, paths))}: there is no text to evaluate on")
    return kept


def _files(paths: Sequence[Path | str]) -> list[InputFile]:
    texts = [path for path in paths if isinstance(path, Path) and path.is_file() and format_of(path.name) is None]
    others = [path for path in paths if path not in texts]
    files = find_files(others, "--eval_file") if others else []
    return [*files, *(InputFile(path, path.name, path.stat().st_size, 0, Format(".txt")) for path in texts)]


def segments_of(documents: list[str], max_positions: int) -> list[str]:
    """Cuts documents into segments that fit the model under any tokenizer.

    All tokenizers encode the same segments, so that none is favoured by more text in its context. A
    character is at most 4 tokens (its UTF-8 bytes); BOS and LLaMA-2's leading ▁ come on top.
    """
    length = max(1, min(_LONGEST_SEGMENT, (max_positions - 2) // 4))
    return [document[begin : begin + length] for document in documents for begin in range(0, len(document), length)]


@torch.inference_mode()
@attention_without_plans()
def loss_per_byte(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: list[str], description: str
) -> TextLoss:
    """Computes the summed negative log-likelihood of all documents over their UTF-8 bytes.

    Tokenizers cut a text into different numbers of tokens, so a loss per token says nothing about
    which model predicts the text better; per byte it does. Documents are cut into segments, each
    after a BOS of its own; where the tokenizer has none (Qwen's), after EOS, which comes before a
    document in the rows that such models are trained on.

    Args:
        model: on its device; logits are converted to float32.
        tokenizer: of the model.
        documents: texts.
        description: for the progress bar.
    """
    segments = segments_of(documents, model.config.max_position_embeddings)
    total, tokens = 0.0, 0
    beginning = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    for ids in progress_bar(TextEncoder(tokenizer).encode_beginning(segments), desc=description, unit="segment"):
        inputs = torch.tensor([[beginning, *ids]], device=model.device)
        logits = model(inputs, use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, inputs[0, 1:], reduction="sum").item()
        tokens += len(ids)
    size = sum(len(document.encode("utf-8")) for document in documents)
    return TextLoss(total / size, tokens, size)


@torch.no_grad()
def randomise_rows(model: PreTrainedModel, first_row: int, around_mean: bool, seed: int = 0) -> None:
    """Replaces the embedding rows from `first_row` on by normal noise of the scale of the others.

    Args:
        model: changed in place; tied matrices once.
        first_row: rows below it are kept.
        around_mean: False: one mean and one deviation for the whole matrix, as a fresh
            initialisation has. True: each column's own, so that the noise lies around the mean of
            all rows (Hewitt 2021, "Initializing new word embeddings for pretrained language
            models"); output rows there are as unlikely as the average token.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    matrices = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    for matrix in matrices.values():
        known = matrix[:first_row].float()
        noise = torch.randn((matrix.shape[0] - first_row, matrix.shape[1]), generator=generator).to(matrix.device)
        mean, deviation = (known.mean(dim=0), known.std(dim=0)) if around_mean else (known.mean(), known.std())
        matrix[first_row:] = (mean + noise * deviation).to(matrix.dtype)


def compare_initialisations(
    source: Path,
    target: Path,
    documents: list[str],
    first_new_row: int,
    means: Mapping[str, np.ndarray] | None = None,
) -> dict[str, TextLoss]:
    """Computes the losses of source model, expanded model, and two random initialisations of it.

    Loads one whole model at a time, in the dtype it is stored in, on the GPU if there is one.

    Args:
        source: directory of model and tokenizer.
        target: the same of the expanded model.
        documents: texts.
        first_new_row: rows below it are the source's vocabulary.
        means: by the name of the matrix, new rows to compute the loss with, too ("mean").
    """
    losses = {}
    model, tokenizer = _load(source)
    losses["source"] = loss_per_byte(model, tokenizer, documents, "source model")
    del model
    model, tokenizer = _load(target)
    losses["initialised"] = loss_per_byte(model, tokenizer, documents, "initialised rows")
    if means is not None:
        _replace_rows(model, first_new_row, means)
        losses["mean"] = loss_per_byte(model, tokenizer, documents, "means")
    for name, around_mean in (("random", False), ("random_around_mean", True)):
        randomise_rows(model, first_new_row, around_mean)
        losses[name] = loss_per_byte(model, tokenizer, documents, name.replace("_", " "))
    return losses


@torch.no_grad()
def _replace_rows(model: PreTrainedModel, first_row: int, rows: Mapping[str, np.ndarray]) -> None:
    parameters = dict(model.named_parameters())  # tied matrices once
    for name, values in rows.items():
        if name in parameters:
            parameters[name][first_row : first_row + len(values)] = torch.from_numpy(values)


def _load(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_complete_model(AutoModelForCausalLM, directory, torch_dtype="auto")
    return model.to(device).eval(), load_tokenizer(directory)
