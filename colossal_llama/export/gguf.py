"""Writes a model directory as one GGUF file for llama.cpp and the programs that are built on it.

llama.cpp's own converter refuses every expanded LLaMA-3, whose tokenizer it does not recognise. The
file is written by the package `gguf` (of llama.cpp's authors) in place of a wrapper around the
converter: the format promises that old files stay readable, and the converter's code moves.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from colossal_llama.export.gguf_chat import GgufChat, read_chat
from colossal_llama.export.gguf_settings import GgufSettings, add_settings, read_settings
from colossal_llama.export.gguf_tensors import (
    GgufTensor,
    TensorStream,
    converted_blocks,
    llama3_frequency_factors,
    plan_tensor,
)
from colossal_llama.export.gguf_vocabulary import GgufVocabulary, read_vocabulary
from colossal_llama.model.architectures import head_width, key_value_heads
from colossal_llama.model.config_file import read_generation_config
from colossal_llama.model.loading import load_config
from colossal_llama.model.weights.llama_tensors import check_tensors
from colossal_llama.model.weights.weight_files import WeightFiles, find_weight_files, open_tensors, tensor_shapes
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.atomic_io import fsync_path, temporary_path
from colossal_llama.utils.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_ROPE_FACTORS = "rope_freqs.weight"


def check_gguf(config_dir: Path, tokenizer_dir: Path) -> None:
    """Checks that a model can be written as GGUF, before anything is written.

    Raises:
        UserError: the package gguf is missing, or llama.cpp would not compute the same.
    """
    _require_package()
    settings = read_settings(load_config(config_dir))
    read_vocabulary(load_tokenizer(tokenizer_dir), settings.config.vocab_size)


def _require_package() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--gguf needs the package gguf, which is not installed: run 'python -m pip install gguf' once"
        ) from error


def write_gguf(model_dir: Path, output: Path, outtype: str) -> dict[str, Any]:
    """Writes a whole model as a GGUF file; one tensor or a block of it is in memory at a time.

    Args:
        model_dir: a model in Hugging Face's format, with its tokenizer.
        output: the file; its name without `-F16` or `-Q8_0` is the model's name in the file.
        outtype: how matrices are stored, "f16" or "q8_0"; vectors are stored in fp32.

    Returns:
        `bytes`, `tensors`, `tokenizer` (llama.cpp's name of it) and `notes`: what llama.cpp does
        otherwise than transformers, a sentence each.

    Raises:
        UserError: the package gguf is missing, or llama.cpp would not compute the same.
    """
    _require_package()
    import gguf

    config = load_config(model_dir)
    settings = read_settings(config)
    check_tensors(model_dir, tensor_shapes(model_dir), config.to_dict())
    tokenizer = load_tokenizer(model_dir)
    vocabulary = read_vocabulary(tokenizer, settings.config.vocab_size)
    stops = read_generation_config(model_dir).get("eos_token_id", settings.config.eos_token_id)
    chat = read_chat(tokenizer, [] if stops is None else stops if isinstance(stops, list) else [stops])
    files = find_weight_files(model_dir)
    tensors = _plan(files, settings, outtype)
    writer = gguf.GGUFWriter(temporary_path(output), settings.architecture)
    try:
        _declare_tensors(writer, tensors, settings)
        _add_metadata(writer, settings, output.stem.removesuffix(f"-{outtype.upper()}"), outtype)
        add_settings(writer, settings)
        _add_vocabulary(writer, vocabulary)
        notes = [*settings.notes, *vocabulary.notes, *chat.notes, *_add_chat(writer, chat, vocabulary)]
        special = {"unknown": tokenizer.unk_token_id, "padding": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id}
        _add_special_tokens(writer, special)
        _write(writer, files, tensors, settings)
        fsync_path(temporary_path(output))
        temporary_path(output).replace(output)
    finally:
        writer.close()
        temporary_path(output).unlink(missing_ok=True)
    return {
        "bytes": output.stat().st_size,
        "tensors": len(tensors),
        "tokenizer": vocabulary.pre_tokenizer if vocabulary.kind == "gpt2" else vocabulary.kind,
        "notes": notes,
    }


def _plan(files: WeightFiles, settings: GgufSettings, outtype: str) -> list[GgufTensor]:
    """Names and types of all tensors, in the order of the weight files.

    Raises:
        UserError: a tensor has no place in llama.cpp's architecture, or a type of its own.
    """
    import gguf

    config = settings.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == settings.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    whole = any(name.startswith("model.") for shard in files.shards for name in shard.tensors)
    reordered = {"q_proj": config.num_attention_heads, "k_proj": key_value_heads(config)}
    planned, problems = [], []
    for source, stored in ((name, shard.tensors[name]) for shard in files.shards for name in sorted(shard.tensors)):
        name = source if whole or source == "lm_head.weight" else f"model.{source}"
        is_tied = name == "lm_head.weight" and config.tie_word_embeddings
        if is_tied or "rotary_emb." in name or not name.startswith(("model.", "lm_head.")):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            problems.append(f"--gguf: llama.cpp's {settings.architecture} has no place for the tensor {source}")
            continue
        heads = reordered.get(name.split(".")[-2]) if settings.architecture == "llama" else None
        planned.append(plan_tensor(target, source, stored, outtype, heads))
    if problems:
        raise UserError(problems[:3])
    return planned


def _declare_tensors(writer: "GGUFWriter", tensors: list[GgufTensor], settings: GgufSettings) -> None:
    import numpy as np

    if settings.rope["rope_type"] == "llama3":
        pairs = head_width(settings.config) // 2
        writer.add_tensor_info(_ROPE_FACTORS, (pairs,), np.dtype(np.float32), 4 * pairs)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=tensor.kind)


def _add_metadata(writer: "GGUFWriter", settings: GgufSettings, name: str, outtype: str) -> None:
    import gguf

    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{outtype.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_vocabulary(writer: "GGUFWriter", vocabulary: GgufVocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)


def _add_chat(writer: "GGUFWriter", chat: GgufChat, vocabulary: GgufVocabulary) -> list[str]:
    """Adds the beginning and the end of prompts and answers; returns what cannot be expressed."""
    writer.add_add_bos_token(chat.adds_bos)
    writer.add_add_eos_token(chat.adds_eos)
    writer.add_add_space_prefix(chat.adds_space)
    if chat.templates:
        writer.add_chat_template([{"name": name, "template": text} for name, text in chat.templates.items()])
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, token_id in zip(adders, chat.stops, strict=False):
        add(token_id)
    if more := chat.stops[len(adders) :]:
        names = ", ".join(repr(vocabulary.tokens[token_id]) for token_id in more)
        return [f"llama.cpp has three keys for tokens that end an answer; {names} end one only if it knows the text"]
    return []


def _add_special_tokens(writer: "GGUFWriter", special: dict[str, int | None]) -> None:
    adders = {"unknown": writer.add_unk_token_id, "padding": writer.add_pad_token_id, "bos": writer.add_bos_token_id}
    for name, token_id in special.items():
        if token_id is not None:
            adders[name](token_id)


def _write(writer: "GGUFWriter", files: WeightFiles, tensors: list[GgufTensor], settings: GgufSettings) -> None:
    """Writes header, metadata and the tensors in the order in which they were declared."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if settings.rope["rope_type"] == "llama3":
        writer.write_tensor_data(llama3_frequency_factors(settings.rope, head_width(settings.config)))
    for shard in files.shards:
        with open_tensors(shard) as read:
            for tensor in (tensor for tensor in tensors if tensor.source in shard.tensors):
                stored = read(tensor.source)
                blocks = TensorStream(tensor.bytes, lambda: converted_blocks(tensor, stored))  # noqa: B023
                writer.write_tensor_data(blocks)
