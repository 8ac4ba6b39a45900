"""Opens what a run begins from, parts, tokenizer, model directory and checkpoint, and checks that they belong together."""

from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from colossal_llama.dataset.part_reader import Part, data_fingerprint, open_parts
from colossal_llama.model.loading import load_config
from colossal_llama.model.weights.adapter_files import (
    ADAPTER_WEIGHTS,
    adapter_base_path,
    is_adapter,
    load_adapter_config,
)
from colossal_llama.model.weights.weight_files import check_safetensors, read_metadata
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.training.arguments import TrainingArguments
from colossal_llama.training.benchmark import random_part
from colossal_llama.training.checkpoint.archive import entry_written_by_a_run
from colossal_llama.training.checkpoint.discovery import find_checkpoint, read_checkpoint
from colossal_llama.training.checkpoint.state import MERGED_MODEL, MODEL, Checkpoint, Origin
from colossal_llama.training.command_line import LORA_LAYERS
from colossal_llama.training.distributed import consensus
from colossal_llama.training.metrics import refuse_other_record
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_directory


@dataclass(frozen=True)
class Data:
    """The opened parts, and the tokenizer that they were made with."""

    parts: list[Part]
    tokenizer: PreTrainedTokenizerFast
    model_path: Path
    """Where weights and tokenizer come from: the checkpoint's model when there is one, else
    --pretrained; with LoRA the base."""
    adapter_path: Path | None
    """A LoRA adapter to go on from."""
    eval_parts: list[Part]
    """For the validation loss; none without --eval_dataset."""
    checkpoint: Checkpoint | None
    """To resume from; None for a fresh start or a weights-only one."""
    origin: Origin

    def model_fingerprint(self) -> str:
        """Differs when the files of model or adapter do."""
        paths = [path for path in (self.model_path, self.adapter_path) if path is not None]
        return "".join(fingerprint_directory(path) for path in paths)


def open_data(arguments: TrainingArguments) -> Data:
    """Opens parts and tokenizer, finds the checkpoint to resume from, and checks that they belong together, on all hosts alike."""
    checkpoint = _agreed_checkpoint(arguments)
    with consensus.raise_on_all_ranks():
        data = _open_data(arguments, checkpoint)
        contents = {
            "the data (--dataset)": data.origin.data_fingerprint,
            "the data (--eval_dataset)": data_fingerprint(data.eval_parts),
            str(data.model_path): data.model_fingerprint(),
        }
    consensus.check_same(contents)
    return data


def _open_data(arguments: TrainingArguments, checkpoint: Checkpoint | None) -> Data:
    model_path, adapter_path = _model_paths(arguments, checkpoint)
    if not arguments.benchmark:
        _check_what_is_overwritten(arguments, model_path, adapter_path, checkpoint)
    config = load_config(model_path)
    if not arguments.dry_run:  # which needs no weights
        check_safetensors(model_path)
    tokenizer = load_tokenizer(model_path)
    if arguments.pad_token is not None:
        _name_padding(tokenizer, arguments.pad_token, model_path)
    if arguments.benchmark:
        parts = [random_part(arguments.num_samples, arguments.max_length, len(tokenizer))]
    else:
        parts = open_parts(arguments.dataset, arguments.max_length)
    eval_parts = []
    if arguments.eval_dataset:
        eval_parts = open_parts(arguments.eval_dataset, arguments.max_length, option="--eval_dataset")
    _warn_of_long_documents(arguments, config, [*parts, *eval_parts])
    fingerprint = tokenizer_fingerprint(tokenizer)
    foreign = [part for part in [*parts, *eval_parts] if part.tokenizer_fingerprint not in (None, fingerprint)]
    if foreign and not arguments.allow_other_data:
        option = "--dataset" if foreign[0] in parts else "--eval_dataset"
        raise UserError(
            f"{option}: {foreign[0].path} was prepared with another tokenizer than the one in {model_path}: prepare "
            "it with "
            f"--tokenizer_dir {model_path} (or say --allow_other_data)"
        )
    origin = Origin(
        data_fingerprint=data_fingerprint(parts),
        tokenizer_fingerprint=fingerprint,
        parts=len(parts),
        seed=arguments.seed,
        shuffle=arguments.shuffle,
        packed_to_tokens=packed_to_tokens(arguments, parts),
    )
    return Data(parts, tokenizer, model_path, adapter_path, eval_parts, checkpoint, origin)


def _warn_of_long_documents(arguments: TrainingArguments, config: PretrainedConfig, parts: list[Part]) -> None:
    longest = max(part.max_document_tokens(arguments.cross_document_attention) for part in parts)
    if longest > config.max_position_embeddings:
        log_rank_zero(
            f"warning: the data have {'rows' if arguments.cross_document_attention else 'documents'} of up to "
            f"{longest:,} tokens, and the "
            f"model was made for {config.max_position_embeddings:,} positions (max_position_embeddings in its "
            "config.json): prepare them "
            "with a smaller --max_length, or raise that number if the model is to learn longer ones"
        )


def _name_padding(tokenizer: PreTrainedTokenizerFast, kind: str, path: Path) -> None:
    token = getattr(tokenizer, f"{kind}_token")
    if token is None:
        other = "unk" if kind == "eos" else "eos"
        raise UserError(f"--pad_token {kind}: the tokenizer in {path} has no {kind} token: say --pad_token {other}")
    tokenizer.pad_token = token


def packed_to_tokens(arguments: TrainingArguments, parts: list[Part]) -> int | None:
    """To which length rows are packed; None where they are not: pre-training rows are spliced already, conversations stand alone."""
    packs = arguments.padding_mode == "none" and parts[0].kind == "sft"
    return arguments.max_length if packs else None


def _agreed_checkpoint(arguments: TrainingArguments) -> Checkpoint | None:
    """The checkpoint that rank 0 finds, opened by every rank: hosts that do not share --save_dir must not go different ways."""
    choice: list[Path | None] = [None]
    with consensus.raise_on_all_ranks():
        if is_rank_zero():
            found = find_checkpoint(arguments.load_checkpoint, arguments.save_dir, log_rank_zero)
            if found is not None and not arguments.benchmark:
                refuse_other_record(arguments.tensorboard_dir, arguments.save_dir)
            choice = [found.path if found else None]
    dist.broadcast_object_list(choice, src=0)
    if choice[0] is None:
        return None
    with consensus.raise_on_all_ranks():
        if not choice[0].is_dir():
            raise UserError(
                f"{choice[0]}, from which rank 0 resumes, is absent: --save_dir must be shared by all hosts"
            )
        return read_checkpoint(choice[0])


def _model_paths(arguments: TrainingArguments, checkpoint: Checkpoint | None) -> tuple[Path, Path | None]:
    """The model to load, and the adapter to put on it if the run goes on from one."""
    path = arguments.pretrained
    if checkpoint is not None:
        path = checkpoint.model_path
    elif arguments.load_checkpoint not in (None, "auto"):
        path = Path(arguments.load_checkpoint)  # a modelling folder: weights only
    if is_adapter(path):
        _check_adapter(arguments, path)
        return _base_of(arguments, path), path
    if checkpoint is not None and arguments.lora_rank:
        raise UserError(
            f"{path} is a whole model, so --lora_rank cannot resume it: start from it with --pretrained {path}"
        )
    return path, None


def _base_of(arguments: TrainingArguments, adapter: Path) -> Path:
    """The model that an adapter goes on with; a notice when it is not the one that it was trained on."""
    former, base = adapter_base_path(adapter), arguments.pretrained
    if base is None or base.resolve() == former.resolve():
        return former
    differ = former.is_dir() and fingerprint_directory(former) != fingerprint_directory(base)
    says = (
        "whose files are others: an adapter is of use on the weights that it was trained on only"
        if differ
        else "moved or copied"
    )
    log_rank_zero(
        f"{'warning: ' if differ else ''}the adapter {adapter} was trained on {former}; it goes on with {base}, {says}"
    )
    return base


def _check_what_is_overwritten(
    arguments: TrainingArguments, model_path: Path, adapter_path: Path | None, checkpoint: Checkpoint | None
) -> None:
    """Refuses a run whose saving would take away what it is begun from, perhaps the only copy.

    A finished model in `--save_dir` may be gone on from: it stays until the run's own, which has
    learned all that it had, is complete. But an adapter in its place is nothing without it; and a
    checkpoint would be renamed, since it is of a later step than the beginning.
    """
    save_dir, resumed = arguments.save_dir, checkpoint.model_path if checkpoint is not None else None
    base = model_path if arguments.lora_rank else None
    for path in (path for path in (model_path, adapter_path) if path not in (None, resumed)):
        entry = entry_written_by_a_run(path, save_dir)
        if entry is None:
            continue
        if path == base:
            raise UserError(
                f"--lora_rank: the base model {path} lies in --save_dir {save_dir}, where this run would replace or "
                "rename it, and an "
                "adapter is nothing without its base: give another --save_dir"
            )
        if entry == MODEL:
            log_rank_zero(
                f"{path} is replaced by the model of this run when it ends: give another --save_dir to keep both"
            )
        elif entry != MERGED_MODEL:
            raise UserError(
                f"{path} lies in --save_dir {save_dir}, where the checkpoints of this run take the place of {entry}: "
                "give another "
                f"--save_dir to begin with its weights (or --load_checkpoint {save_dir / entry} to go on from it)"
            )


def _check_adapter(arguments: TrainingArguments, path: Path) -> None:
    """Refuses LoRA options that are not those of the adapter that the run goes on with: peft takes the adapter's."""
    saved = load_adapter_config(path)
    problems = []
    if (path / ADAPTER_WEIGHTS).is_file():
        read_metadata(path / ADAPTER_WEIGHTS)
    else:
        problems.append(f"{path} holds no {ADAPTER_WEIGHTS}; pickled adapters are not loaded")
    if arguments.lora_rank != saved["r"]:
        problems.append(
            f"{path} is a LoRA adapter of rank {saved['r']}: give --lora_rank {saved['r']} to go on with it"
        )
    if arguments.lora_alpha not in (None, saved["lora_alpha"]):
        problems.append(f"{path} was trained with --lora_alpha {saved['lora_alpha']}, not {arguments.lora_alpha}")
    if arguments.lora_dropout not in (0.0, saved["lora_dropout"]):
        problems.append(f"{path} was trained with --lora_dropout {saved['lora_dropout']}, not {arguments.lora_dropout}")
    if arguments.lora_target_modules != LORA_LAYERS and set(arguments.lora_target_modules) != set(
        saved["target_modules"]
    ):
        problems.append(
            f"{path} has adapters on {', '.join(sorted(saved['target_modules']))}: give these as --lora_target_modules"
        )
    if problems:
        raise UserError(problems)
