"""Inputs of a run, opened and checked against each other: parts, tokenizer, model, checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch.distributed as dist
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from colossal_llama.dataset.part import Part, data_fingerprint
from colossal_llama.dataset.part_paths import FoundParts
from colossal_llama.dataset.part_reader import open_parts
from colossal_llama.dataset.tokenized.scan import Scan
from colossal_llama.model.architectures import ARCHITECTURES, architecture_of
from colossal_llama.model.config_file import read_generation_config
from colossal_llama.model.expansion.new_rows import first_new_row, new_rows_trained, record_of_new_rows
from colossal_llama.model.expansion.new_tokens import vocabulary_rows
from colossal_llama.model.loading import load_config
from colossal_llama.model.rope import varying_rope_problem
from colossal_llama.model.weights.adapter_files import (
    ADAPTER_WEIGHTS,
    EMBEDDINGS,
    adapter_base_name,
    check_embeddings,
    is_adapter,
    load_adapter_config,
    whole_modules,
)
from colossal_llama.model.weights.llama_tensors import check_tensors
from colossal_llama.model.weights.weight_files import read_metadata, tensor_shapes
from colossal_llama.tokenizer.loading import load_tokenizer, tokenizer_fingerprint
from colossal_llama.training.argument_checks import impossible_layout
from colossal_llama.training.arguments import (
    LORA_LAYERS,
    DataArguments,
    MethodArguments,
    PluginArguments,
    TrainingArguments,
)
from colossal_llama.training.benchmark import random_part
from colossal_llama.training.chat_format import keep_adapters_format, record_chat_format
from colossal_llama.training.checkpoint.archive import entry_written_by_a_run
from colossal_llama.training.checkpoint.discovery import find_checkpoint, read_checkpoint
from colossal_llama.training.checkpoint.integrity import check_model_directory, damage_of_checkpoint
from colossal_llama.training.checkpoint.state import MERGED_MODEL, MODEL, Checkpoint, Origin, Progress
from colossal_llama.training.data_notes import refuse_other_ids, report_parts, report_paths
from colossal_llama.training.data_verification import DataVerification
from colossal_llama.training.distributed import consensus
from colossal_llama.training.distributed.data_scan import find_parts_on_all_ranks, scan_on_all_hosts
from colossal_llama.training.distributed.model_download import directory_on_all_hosts
from colossal_llama.training.metrics import refuse_other_record
from colossal_llama.training.task_questions import PromptedQuestion, open_questions
from colossal_llama.training.trained_parameters import new_row_options
from colossal_llama.utils.checksums import has_checksums
from colossal_llama.utils.console import is_rank_zero, log_rank_zero
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_directory
from colossal_llama.utils.hub.fetch import cached_copy, origin_of, snapshot_name
from colossal_llama.utils.hub.files import Needed
from colossal_llama.utils.hub.names import ModelName, path_or_name

SFT_ACCUMULATION_STEPS = 8
"""Default of `--accumulation_steps` on conversations."""


@dataclass(frozen=True)
class RunInputs:
    """Opened parts, tokenizer, and the paths of model and checkpoint."""

    parts: list[Part]
    tokenizer: PreTrainedTokenizerFast
    model_path: Path
    """Directory of weights and tokenizer: the checkpoint's model, else --pretrained; with LoRA the
    base model."""
    adapter_path: Path | None
    """LoRA adapter to continue; None for new adapters or without LoRA."""
    eval_parts: list[Part]
    """Parts for the validation loss; empty without --eval_dataset."""
    checkpoint: Checkpoint | None
    """Checkpoint to resume from; None for a fresh start or a weights-only one."""
    origin: Origin
    verification: DataVerification
    """Reads the parts in the background; to be finished before the first step."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end an answer in the data's conversations, see `record_chat_format`."""
    first_new_row: int | None = None
    """First embedding row of the last expansion, by its record or `--first_new_row`; None: none."""
    new_rows_trained: bool | None = None
    """True when these rows are trained by this run or were by an earlier one; None: not known."""
    task_questions: tuple[PromptedQuestion, ...] = ()
    """Of `--eval_tasks`."""

    @property
    def new_rows(self) -> range | None:
        """Embedding rows of the last expansion, without those that only pad the matrix."""
        if self.first_new_row is None:
            return None
        return range(self.first_new_row, vocabulary_rows(self.tokenizer))

    def record_of_new_rows(self) -> dict[str, bytes]:
        """The file by which the run's models carry on what is known of their new rows, by name."""
        return record_of_new_rows(self.first_new_row, self.new_rows_trained)

    def model_fingerprint(self) -> str:
        """Fingerprint of the files of the model and of the adapter."""
        return "".join(model_fingerprint(path) for path in self._model_paths())

    def start_paths(self) -> list[Path]:
        """Directories of model and adapter that are not the resumed checkpoint's."""
        resumed = self.checkpoint.model_path if self.checkpoint is not None else None
        return [path for path in self._model_paths() if path != resumed]

    def _model_paths(self) -> list[Path]:
        return [path for path in (self.model_path, self.adapter_path) if path is not None]


def open_inputs(arguments: TrainingArguments) -> RunInputs:
    """Opens parts and tokenizer, finds the checkpoint, and compares the inputs of all hosts.

    Raises:
        CollectiveError: a file is missing or damaged, inputs do not match each other, or they
            differ between hosts.
    """
    checkpoint = _undamaged_checkpoint(arguments)
    data = _found_data(arguments, is_resumed=checkpoint is not None)
    with consensus.raise_on_all_ranks():
        source, adapter_path = _model_sources(arguments, checkpoint)
    needed = Needed.CONFIGURATION if arguments.dry_run.dry_run else Needed.MODEL
    model_path = directory_on_all_hosts(source, needed)
    with consensus.raise_on_all_ranks():
        if isinstance(source, ModelName):
            _refuse_impossible_layout(arguments, model_path)
        if adapter_path is not None:
            _say_if_other_base(model_path, adapter_path)
        inputs = _open_inputs(arguments, data, checkpoint, model_path, adapter_path)
        fingerprints = {
            "the data (--dataset)": inputs.origin.data_fingerprint,
            "the data (--eval_dataset)": data_fingerprint(inputs.eval_parts),
            str(inputs.model_path): inputs.model_fingerprint(),
        }
    consensus.check_same(fingerprints)
    if not arguments.dry_run.dry_run:
        for path in inputs.start_paths():
            check_model_directory(path)
    questions = open_questions(arguments.tasks, inputs.tokenizer, load_config(model_path))
    return replace(inputs, task_questions=questions)


def with_data_defaults(arguments: TrainingArguments, inputs: RunInputs) -> TrainingArguments:
    """Sets the default of `--accumulation_steps`, which depends on the data: 8 on conversations."""
    default = SFT_ACCUMULATION_STEPS if inputs.parts[0].kind == "sft" else 1
    steps = arguments.data.accumulation_steps or default
    return replace(arguments, data=replace(arguments.data, accumulation_steps=steps))


def resume_progress(checkpoint: Checkpoint, origin: Origin, allow_other_data: bool) -> Progress:
    """Reads the progress of a checkpoint, after comparing data, tokenizer and order.

    Raises:
        UserError: they differ from those that the run began with, and `allow_other_data` is False.
    """
    differences = origin.differences(checkpoint.running_states["origin"])
    if differences and not allow_other_data:
        raise UserError(
            [f"cannot resume {checkpoint.path}: {difference}" for difference in differences]
            + ["give the inputs that the run began with, or --allow_other_data to resume with these"]
        )
    return checkpoint.progress


def packed_to_tokens(data: DataArguments, parts: Sequence[Part]) -> int | None:
    """Length of the rows into which samples are packed in training; None without packing.

    Pre-training rows are spliced during preparation; padded conversations have a row each.
    """
    packs = data.padding_mode == "none" and any(part.holds_samples for part in parts)
    return data.max_length if packs else None


@dataclass(frozen=True)
class _FoundData:
    """Parts of each option, and the scans of data sets that other programs tokenized."""

    parts: dict[str, FoundParts]
    scans: dict[Path, Scan]

    def open(self, option: str, max_length: int) -> list[Part]:
        """Opens the parts of an option; none where it is not given."""
        paths = self.parts[option].paths
        return open_parts(paths, max_length, option, self.scans) if paths else []


def _found_data(arguments: TrainingArguments, is_resumed: bool) -> _FoundData:
    """Finds the parts of all options, and reads what other programs tokenized; a collective.

    A run of an earlier version may have begun with a part given twice, and goes on with it.
    """
    given = {"--dataset": arguments.data.dataset, "--eval_dataset": arguments.records.eval_dataset}
    found = find_parts_on_all_ranks(given, may_repeat=is_resumed)
    report_paths(found)
    return _FoundData(found, scan_on_all_hosts(found))


def _open_inputs(
    arguments: TrainingArguments,
    found: _FoundData,
    checkpoint: Checkpoint | None,
    model_path: Path,
    adapter_path: Path | None,
) -> RunInputs:
    data, is_benchmark = arguments.data, arguments.benchmark.benchmark
    if not is_benchmark:
        save_dir, lora_rank = arguments.checkpoint.save_dir, arguments.method.lora_rank
        _refuse_overwriting_start(save_dir, lora_rank, model_path, adapter_path, checkpoint)
    config = load_config(model_path)
    _refuse_parallel_dimensions(arguments.plugin, config, model_path)
    _refuse_more_layers(arguments.method, config, model_path)
    if adapter_path is not None:
        check_embeddings(adapter_path, model_path, config.vocab_size)
    read_generation_config(model_path)
    if not arguments.dry_run.dry_run:  # a dry run reads no weights
        check_tensors(model_path, tensor_shapes(model_path), config.to_dict())
    tokenizer = load_tokenizer(model_path)
    if data.pad_token is not None:
        _set_pad_token(tokenizer, data.pad_token, model_path)
    if is_benchmark:
        parts = [random_part(arguments.benchmark.num_samples, data.max_length, len(tokenizer))]
    else:
        parts = found.open("--dataset", data.max_length)
    eval_parts = found.open("--eval_dataset", data.max_length)
    by_option = {"--dataset": parts, "--eval_dataset": eval_parts}
    _refuse_varying_rope(data, config, [*parts, *eval_parts])
    _warn_of_long_documents(data.cross_document_attention, config, [*parts, *eval_parts])
    fingerprint = tokenizer_fingerprint(tokenizer)
    if not arguments.checkpoint.allow_other_data:
        _refuse_other_tokenizer(by_option, fingerprint, model_path)
    adapters_stop_ids = () if adapter_path is None else keep_adapters_format(tokenizer, adapter_path)
    stop_ids = record_chat_format(tokenizer, parts, fingerprint) or adapters_stop_ids
    origin = Origin(
        data_fingerprint=data_fingerprint(parts),
        tokenizer_fingerprint=fingerprint,
        parts=len(parts),
        seed=data.seed,
        shuffle=data.shuffle,
        packed_to_tokens=packed_to_tokens(data, parts),
    )
    # Parts of another tokenizer may have ids that only the embeddings have.
    ids = config.vocab_size if arguments.checkpoint.allow_other_data else vocabulary_rows(tokenizer)
    refuse_other_ids(by_option, tokenizer, ids)
    report_parts(by_option, tokenizer)
    verification = DataVerification(by_option, ids, config.vocab_size, data.verify_data)
    return RunInputs(
        parts,
        tokenizer,
        model_path,
        adapter_path,
        eval_parts,
        checkpoint,
        origin,
        verification,
        stop_ids,
        _first_new_row(arguments, model_path, adapter_path, vocabulary_rows(tokenizer)),
        _new_rows_trained(arguments.method, model_path, adapter_path, vocabulary_rows(tokenizer)),
    )


def _first_new_row(
    arguments: TrainingArguments, model_path: Path, adapter_path: Path | None, tokens: int
) -> int | None:
    """The first row of the last expansion, as `--first_new_row` or a record says.

    An adapter's record counts first: its run may have been told.
    """
    given = arguments.method.first_new_row
    recorded = (first_new_row(path) for path in (adapter_path, model_path) if path is not None)
    first = given if given is not None else next((row for row in recorded if row is not None), None)
    if first is not None and first >= tokens:
        source = f"--first_new_row {first}" if given is not None else f"the record in {model_path}"
        raise UserError(
            f"{source}: the new rows would begin at {first:,}, and the tokenizer in {model_path} has ids for "
            f"{tokens:,} rows only: give as --first_new_row the number of rows before the expansion"
        )
    if first is None and (options := new_row_options(arguments)):
        raise UserError(
            f"{' and '.join(options)}: no expansion is recorded in {model_path} (init_report.json, "
            "expansion_report.json, new_rows.json): give as --first_new_row the number of embedding rows before its "
            "vocabulary was expanded, or leave the option out"
        )
    return first


def _refuse_more_layers(method: MethodArguments, config: PretrainedConfig, model_path: Path) -> None:
    if method.freeze_layers > config.num_hidden_layers:
        raise UserError(
            f"--freeze_layers {method.freeze_layers}: {model_path} has {config.num_hidden_layers} layers: give at most "
            "as many"
        )


def _new_rows_trained(method: MethodArguments, model_path: Path, adapter_path: Path | None, tokens: int) -> bool | None:
    """True when the new rows have been trained, or are now; warns where LoRA would freeze new ones.

    An adapter has a record of its own: it may have been trained with the rows.
    """
    if not method.lora_rank or method.lora_new_rows:
        return True
    paths = [path for path in (adapter_path, model_path) if path is not None]
    trained = next((known for path in paths if (known := new_rows_trained(path)) is not None), None)
    if trained is False:
        first = first_new_row(model_path) or 0
        log_rank_zero(
            f"warning: {tokens - first:,} embedding rows of {model_path} (from {first:,} on) are as an expansion "
            "initialised them, no run has trained them, and LoRA freezes them: give --lora_new_rows to train them "
            "with the adapter, or train the model first without --lora_rank"
        )
    return trained


def _refuse_parallel_dimensions(plugin: PluginArguments, config: PretrainedConfig, model_path: Path) -> None:
    """Refuses the parallel dimensions of plugin 3d for architectures that they do not know."""
    if plugin.tp * plugin.pp * plugin.sp == 1 or architecture_of(config).is_parallelised:
        return
    supported = ", ".join(each.model_type for each in ARCHITECTURES if each.is_parallelised)
    raise UserError(
        f"{model_path} is a model of type {config.model_type!r}: --tp, --pp and --sp divide models of type {supported} "
        "only; train it with --plugin zero2, zero2_cpu, gemini or ddp"
    )


def _refuse_other_tokenizer(parts_by_option: dict[str, list[Part]], fingerprint: str, model_path: Path) -> None:
    for option, parts in parts_by_option.items():
        for part in parts:
            if part.tokenizer_fingerprint not in (None, fingerprint):
                raise UserError(
                    f"{option}: {part.path} was prepared with another tokenizer than the one in {model_path}: "
                    f"prepare it with --tokenizer_dir {model_path}, or give --allow_other_data"
                )


def _refuse_varying_rope(data: DataArguments, config: PretrainedConfig, parts: list[Part]) -> None:
    lengths = np.concatenate([part.document_tokens(data.cross_document_attention) for part in parts])
    one_per_row = len(lengths) == sum(len(part.rows) for part in parts)
    is_packed = packed_to_tokens(data, parts) is not None
    several = data.micro_batch_size > 1 or is_packed or not one_per_row
    # A packed row is one document where attention crosses documents.
    longest_tokens = data.max_length if is_packed and data.cross_document_attention else int(lengths.max())
    if problem := varying_rope_problem(config, int(lengths.min()), longest_tokens, several):
        raise UserError(problem)


def _warn_of_long_documents(cross_document_attention: bool, config: PretrainedConfig, parts: list[Part]) -> None:
    longest_tokens = max(int(part.document_tokens(cross_document_attention).max(initial=0)) for part in parts)
    if longest_tokens > config.max_position_embeddings:
        log_rank_zero(
            f"warning: the data have {'rows' if cross_document_attention else 'documents'} of up to "
            f"{longest_tokens:,} tokens, and the model has {config.max_position_embeddings:,} positions "
            "(max_position_embeddings in its config.json): prepare them with a smaller --max_length, or raise that "
            "value if the model is to learn longer ones"
        )


def _set_pad_token(tokenizer: PreTrainedTokenizerFast, kind: str, path: Path) -> None:
    token = getattr(tokenizer, f"{kind}_token")
    if token is None:
        other = "unk" if kind == "eos" else "eos"
        raise UserError(f"--pad_token {kind}: the tokenizer in {path} has no {kind} token: give --pad_token {other}")
    tokenizer.pad_token = token


def _undamaged_checkpoint(arguments: TrainingArguments) -> Checkpoint | None:
    """The checkpoint to resume from, compared with its checksums; a collective.

    `auto` goes back to the newest one that is not damaged. A dry run compares nothing.
    """
    damaged: dict[Path, str] = {}
    while True:
        checkpoint, lines = _checkpoint_of_rank_zero(arguments, damaged)
        if checkpoint is not None and not arguments.dry_run.dry_run:
            damage = damage_of_checkpoint(checkpoint)
            if damage is not None:
                damaged[checkpoint.path] = damage
                continue
        for line in lines:
            log_rank_zero(line)
        return checkpoint


def _checkpoint_of_rank_zero(
    arguments: TrainingArguments, damaged: Mapping[Path, str]
) -> tuple[Checkpoint | None, list[str]]:
    """Reads, on every rank, the checkpoint that rank 0 finds; also rank 0's lines for the log.

    Ranks that searched for themselves would diverge when `--save_dir` is not shared by all hosts.
    """
    save_dir = arguments.checkpoint.save_dir
    choice: list[Path | None] = [None]
    lines: list[str] = []
    with consensus.raise_on_all_ranks():
        if is_rank_zero():
            found = find_checkpoint(arguments.checkpoint.load_checkpoint, save_dir, lines.append, damaged)
            if found is not None and not arguments.benchmark.benchmark:
                refuse_other_record(arguments.records.tensorboard_dir, save_dir)
            choice = [found.path if found else None]
    dist.broadcast_object_list(choice, src=0)
    if choice[0] is None:
        return None, lines
    with consensus.raise_on_all_ranks():
        if not choice[0].is_dir():
            raise UserError(
                f"{choice[0]}, from which rank 0 resumes, is absent: --save_dir must be shared by all hosts"
            )
        return read_checkpoint(choice[0]), lines


def _model_sources(arguments: TrainingArguments, checkpoint: Checkpoint | None) -> tuple[Path | ModelName, Path | None]:
    """The model to load, by path or name, and the path of the LoRA adapter to continue, if any."""
    path, load_checkpoint = arguments.model.pretrained, arguments.checkpoint.load_checkpoint
    if checkpoint is not None:
        path = checkpoint.model_path
    elif load_checkpoint not in (None, "auto"):
        path = Path(load_checkpoint)  # a modelling directory: weights only
    assert path is not None, "--pretrained is needed without a checkpoint"
    if isinstance(path, ModelName):
        return path, None
    if is_adapter(path):
        _check_adapter(arguments.method, path)
        return arguments.model.pretrained or path_or_name(adapter_base_name(path)), path
    if checkpoint is not None and arguments.method.lora_rank:
        raise UserError(
            f"{path} is a whole model, so --lora_rank cannot resume it: start from it with --pretrained {path}"
        )
    return path, None


def model_fingerprint(directory: Path) -> str:
    """Fingerprint of a model: the commit of a snapshot in the cache of the hub, else its files'.

    A snapshot may hold further files, which another program has downloaded on one host alone.
    """
    return str(snapshot_name(directory) or fingerprint_directory(directory))


def _refuse_impossible_layout(arguments: TrainingArguments, model_path: Path) -> None:
    world_size = arguments.dry_run.dry_run_processes or dist.get_world_size()
    if arguments.plugin.plugin == "3d" and (problem := impossible_layout(arguments, model_path, world_size)):
        raise UserError(problem)


def _say_if_other_base(base: Path, adapter: Path) -> None:
    """Logs a notice when the base model is not the one, or not in the place, of the training."""
    trained_on = path_or_name(adapter_base_name(adapter))
    former = cached_copy(trained_on, Needed.MODEL) if isinstance(trained_on, ModelName) else trained_on
    if former is not None and base.resolve() == former.resolve():
        return
    origin = origin_of(base)
    if isinstance(trained_on, ModelName) and origin is not None and origin.repository == trained_on.repository:
        differ = trained_on.revision not in (None, origin.revision)
    else:
        differ = former is not None and former.is_dir() and model_fingerprint(former) != model_fingerprint(base)
    reason = (
        "whose files differ: an adapter fits only the weights that it was trained on" if differ else "moved or copied"
    )
    log_rank_zero(
        f"{'warning: ' if differ else ''}the adapter {adapter} was trained on {trained_on}; training continues on "
        f"{base}, {reason}"
    )


def _refuse_overwriting_start(
    save_dir: Path, lora_rank: int, model_path: Path, adapter_path: Path | None, checkpoint: Checkpoint | None
) -> None:
    """Refuses a run whose checkpoints would replace its start model, perhaps the only copy.

    A run may start from the final model in `save_dir`, which stays until the run's own is complete;
    but a LoRA run would replace its base model by an adapter. A checkpoint that a run starts from
    would be archived as one of an earlier run.
    """
    resumed = checkpoint.model_path if checkpoint is not None else None
    base = model_path if lora_rank else None
    for path in (path for path in (model_path, adapter_path) if path not in (None, resumed)):
        entry = entry_written_by_a_run(path, save_dir)
        if entry is None:
            continue
        if path == base:
            raise UserError(
                f"--lora_rank: the base model {path} is in --save_dir {save_dir}, where this run would replace or "
                "rename it, and an adapter is useless without its base model: give another --save_dir"
            )
        if entry == MODEL:
            kept = "it is archived then" if not has_checksums(path) else "give another --save_dir to keep both"
            log_rank_zero(f"{path} is replaced by the model of this run when it ends: {kept}")
        elif entry != MERGED_MODEL:
            raise UserError(
                f"{path} is in --save_dir {save_dir}, where the checkpoints of this run replace {entry}: give another "
                f"--save_dir to start from its weights, or --load_checkpoint {save_dir / entry} to resume it"
            )


def _check_adapter(method: MethodArguments, path: Path) -> None:
    """Refuses LoRA options that differ from those of the adapter to continue.

    peft uses the adapter's, whatever the options are.
    """
    saved = load_adapter_config(path)
    problems = []
    if (path / ADAPTER_WEIGHTS).is_file():
        read_metadata(path / ADAPTER_WEIGHTS)
    else:
        problems.append(f"{path} holds no {ADAPTER_WEIGHTS}; pickled adapters are not loaded")
    if method.lora_rank != saved["r"]:
        problems.append(f"{path} is a LoRA adapter of rank {saved['r']}: give --lora_rank {saved['r']} to continue it")
    if method.lora_alpha not in (None, saved["lora_alpha"]):
        problems.append(f"{path} was trained with --lora_alpha {saved['lora_alpha']}, not {method.lora_alpha}")
    if method.lora_dropout not in (0.0, saved["lora_dropout"]):
        problems.append(f"{path} was trained with --lora_dropout {saved['lora_dropout']}, not {method.lora_dropout}")
    modules = set(saved["target_modules"])
    if method.lora_target_modules != LORA_LAYERS and set(method.lora_target_modules) != modules:
        problems.append(f"{path} has adapters on {', '.join(sorted(modules))}: give these as --lora_target_modules")
    whole = whole_modules(path)
    if method.lora_new_rows and whole not in ((), tuple(sorted(EMBEDDINGS))):
        problems.append(f"{path} replaces {', '.join(whole)} as a whole: it cannot be continued with --lora_new_rows")
    if not method.lora_new_rows and new_rows_trained(path) and whole:
        problems.append(f"{path} was trained with --lora_new_rows: give it again to continue it")
    if problems:
        raise UserError(problems)
