"""Resizing of a model's embeddings to an expanded tokenizer: planned on headers, then streamed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from colossal_llama.model.architectures import find_architecture
from colossal_llama.model.config_file import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    read_generation_config,
    read_model_config,
)
from colossal_llama.model.expansion.mean_init import Constituents, InitMethod, RowStatistics, mean_rows
from colossal_llama.model.expansion.new_tokens import SPECIAL_IDS, read_new_tokens
from colossal_llama.model.weights.llama_tensors import check_tensors
from colossal_llama.model.weights.stored_tensors import ARITHMETIC_TYPES, BLOCK_BYTES, StoredTensor
from colossal_llama.model.weights.weight_files import (
    SAFETENSORS_INDEX,
    Replacement,
    WeightFiles,
    find_weight_files,
    open_tensors,
    rewrite_shard,
)
from colossal_llama.model.weights.written_model import check_written_model
from colossal_llama.tokenizer.expansion.result import REPORT_FILE
from colossal_llama.tokenizer.loading import REPEATED_FILES, VOCABULARY_FILES, stored_chat_template
from colossal_llama.tokenizer.settings_file import CHAT_TEMPLATE_FILE, settings_contents
from colossal_llama.utils.atomic_io import atomic_directory, write_bytes, write_json
from colossal_llama.utils.console import progress_bar
from colossal_llama.utils.disk_space import check_free_space
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.json_files import read_json_object

INPUT_MATRIX = "model.embed_tokens.weight"
OUTPUT_MATRIX = "lm_head.weight"


@dataclass(frozen=True)
class ExpansionPlan:
    """Decisions taken before the first byte is written.

        matrix row    0 … source_vocabulary    … target_vocabulary      … rows
                      source rows, copied        means of source rows     padding: mean of all rows

    Attributes:
        source_rows: rows of the source's matrices; those from `source_vocabulary` on are padding
            and are dropped.
        constituents: of each row from `source_vocabulary` to `target_vocabulary`.
        matrices: names of the tensors that get new rows; one when the embeddings are tied.
        configs: `config.json` and, if the source has it, `generation_config.json`, as they will be
            written.
        corrections: sentences on what was changed in the configs apart from `vocab_size`.
    """

    source: Path
    target_tokenizer: Path
    weights: WeightFiles
    matrices: tuple[str, ...]
    source_vocabulary: int
    source_rows: int
    target_vocabulary: int
    rows: int
    constituents: Constituents
    configs: Mapping[str, dict[str, Any]]
    corrections: tuple[str, ...]

    @property
    def new_tokens(self) -> int:
        """Number of tokens that the source does not have."""
        return self.target_vocabulary - self.source_vocabulary

    @property
    def total_bytes(self) -> int:
        """Size of all tensors of the new model."""
        return sum(
            (shape.with_rows(self.rows) if name in self.matrices else shape).bytes
            for shard in self.weights.shards
            for name, shape in shard.tensors.items()
        )


def plan_expansion(source_path: Path, target_tokenizer_path: Path) -> ExpansionPlan:
    """Reads tokenizers, configs and weight file headers, and checks that they match.

    Raises:
        UserError: files are missing or damaged, the target tokenizer does not extend the source's,
            or the weights are not those of a causal LLaMA with this vocabulary.
    """
    config = read_model_config(source_path)
    tokens = read_new_tokens(source_path, target_tokenizer_path)
    source_vocabulary = tokens.source_vocabulary
    rows = _padded_vocab_size(target_tokenizer_path, tokens.target_vocabulary)
    weights = find_weight_files(source_path)
    matrices = _embedding_names(weights, config, source_path)
    if find_architecture(config["model_type"]):
        shapes = {name: tensor.shape for shard in weights.shards for name, tensor in shard.tensors.items()}
        check_tensors(source_path, shapes, config)
    check_written_model(source_path)
    source_rows = weights.shape_of(matrices[0]).shape[0]
    if source_vocabulary > source_rows:
        raise UserError(
            f"the tokenizer in {source_path} has {source_vocabulary:,} tokens, the model rows for {source_rows:,} "
            "only: take the tokenizer that belongs to this model, or remove what was added to it"
        )
    configs, corrections = _target_configs(source_path, config, tokens.special_ids, rows)
    return ExpansionPlan(
        source=source_path,
        target_tokenizer=target_tokenizer_path,
        weights=weights,
        matrices=matrices,
        source_vocabulary=source_vocabulary,
        source_rows=source_rows,
        target_vocabulary=tokens.target_vocabulary,
        rows=rows,
        constituents=Constituents.of(tokens.source_pieces),
        configs=configs,
        corrections=corrections,
    )


def _embedding_names(weights: WeightFiles, config: dict[str, Any], source_path: Path) -> tuple[str, ...]:
    """Finds the embedding matrices by name, and checks their dtype and shape."""
    candidates = {name: weights.find(name) for name in (INPUT_MATRIX, OUTPUT_MATRIX)}
    if candidates[INPUT_MATRIX] is None:
        raise UserError(
            f"the weights in {source_path} have no tensor {INPUT_MATRIX}: they are not those of a causal LLaMA"
        )
    if candidates[OUTPUT_MATRIX] is None and not config.get("tie_word_embeddings", False):
        raise UserError(
            f"the weights in {source_path} have no tensor {OUTPUT_MATRIX}, and config.json does not tie it to the "
            "input embeddings (tie_word_embeddings): the output matrix is missing"
        )
    found = {name: shape for name, shape in candidates.items() if shape is not None}
    for name, shape in found.items():
        if shape.dtype not in ARITHMETIC_TYPES or len(shape.shape) != 2:
            raise UserError(
                f"{name} in {source_path} is {list(shape.shape)} of {shape.dtype_name}: a matrix of float16, bfloat16, "
                "float32 or float64 is needed (expand before quantising)"
            )
        if shape.shape[0] != config.get("vocab_size"):
            raise UserError(
                f"{name} in {source_path} has {shape.shape[0]:,} rows, but vocab_size in config.json is "
                f"{config.get('vocab_size')}"
            )
    return tuple(found)


def _padded_vocab_size(target_tokenizer_path: Path, target_vocabulary: int) -> int:
    """Reads `padded_vocab_size` of the tokenizer's expansion_report.json, or one row per token."""
    report = target_tokenizer_path / REPORT_FILE
    if not report.is_file():
        return target_vocabulary
    rows = read_json_object(report, "expand the tokenizer again").get("padded_vocab_size")
    if rows is None:
        return target_vocabulary
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < target_vocabulary:
        raise UserError(
            f"padded_vocab_size in {report} is {rows!r}: it must be a whole number of at least {target_vocabulary}"
        )
    return rows


def _target_configs(
    source_path: Path, config: dict[str, Any], special_ids: Mapping[str, int | None], rows: int
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Makes the configs with the new vocabulary size and special ids, and lists the corrections."""
    configs = {CONFIG_FILE: {**config, "vocab_size": rows}}
    if (source_path / GENERATION_CONFIG_FILE).is_file():
        configs[GENERATION_CONFIG_FILE] = read_generation_config(source_path)
    corrections = []
    for name, content in configs.items():
        for key in SPECIAL_IDS:
            corrected = _special_id(content.get(key), special_ids[key], rows)
            if corrected != content.get(key):
                corrections.append(f"{name}: {key} was {content.get(key)}, the tokenizer's is {corrected}")
                content[key] = corrected
    return configs, tuple(corrections)


def _special_id(configured: int | list[int] | None, tokenizers: int | None, rows: int) -> int | list[int] | None:
    """Returns the configured id if it is or includes the tokenizer's, else the tokenizer's.

    A list may hold more ids. Where the tokenizer has none (LLaMA has no padding token), a
    configured id that is a row is kept.
    """
    ids = configured if isinstance(configured, list) else [configured]
    if tokenizers in ids:
        return configured
    if tokenizers is None and all(isinstance(index, int) and 0 <= index < rows for index in ids):
        return configured
    return tokenizers


def create_model(
    plan: ExpansionPlan, method: str, directory: Path, new_rows: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Writes the new model and returns the report (see `describe`).

    A new directory appears when it is complete. In the target tokenizer's own directory the files
    appear one by one, config.json last: without it nothing loads. After an error the files written
    are removed.

    Args:
        plan: of the expansion.
        method: a method of `mean_rows`, or the name of the one that made `new_rows`.
        directory: of the new model.
        new_rows: by the name of the matrix, float32 or float64; None for means.

    Raises:
        UserError: there is too little disk space.
    """
    check_free_space(plan.total_bytes, directory, "the new model", "give another --target_model_path")
    completes_tokenizer = directory.resolve() == plan.target_tokenizer.resolve()
    with _removed_on_error(directory) if completes_tokenizer else atomic_directory(directory) as output:
        norms = _write_weights(plan, method, new_rows, output)
        if not completes_tokenizer:
            _copy_tokenizer(plan.target_tokenizer, output)
        _keep_chat_template(plan.source, output)
        report = describe(plan, method, norms)
        write_json(output / "init_report.json", report)
        for name in sorted(plan.configs, reverse=True):  # generation_config.json, then config.json
            write_json(output / name, plan.configs[name])
    return report


@contextmanager
def _removed_on_error(directory: Path) -> Iterator[Path]:
    """Yields `directory`; on an error, removes the files that have appeared in it since."""
    before = set(directory.iterdir())
    try:
        yield directory
    except BaseException:
        for path in set(directory.iterdir()) - before:
            path.unlink()
        raise


def _copy_tokenizer(tokenizer: Path, directory: Path) -> None:
    files = (tokenizer / name for name in (*VOCABULARY_FILES, *REPEATED_FILES, REPORT_FILE))
    contents = {path.name: path.read_bytes() for path in files if path.is_file()}
    for name, content in (contents | settings_contents(tokenizer)).items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_bytes(directory / name, content)


def _keep_chat_template(source: Path, directory: Path) -> None:
    """Writes the source's chat template for an expanded tokenizer that has none.

    A tokenizer may have been expanded without the settings of the model that it belongs to.
    """
    template = stored_chat_template(source)
    if template is not None and stored_chat_template(directory) is None:
        write_bytes(directory / CHAT_TEMPLATE_FILE, template.encode())


def mean_matrices(plan: ExpansionPlan) -> dict[str, np.ndarray]:
    """Computes the mean rows of each matrix that `create_model` writes, float32 or float64."""
    matrices = {}
    for shard in plan.weights.shards:
        with open_tensors(shard) as read:
            for name in (name for name in plan.matrices if name in shard.tensors):
                stored, known = read(name), RowStatistics()
                for rows in _source_rows(plan, stored):
                    known.add(stored.to_float(rows))
                _check_finite(plan, known)
                matrices[name] = np.concatenate(list(mean_rows(stored, plan.constituents, "mean", known.mean)))
    return matrices


def _write_weights(
    plan: ExpansionPlan, method: str, new_rows: Mapping[str, np.ndarray] | None, directory: Path
) -> dict[str, dict[str, float]]:
    """Writes all shards and their index; returns the average norms of old and new rows."""
    norms: dict[str, dict[str, float]] = {}

    def new_blocks(name: str, stored: StoredTensor, default: np.ndarray) -> Iterable[np.ndarray]:
        if new_rows is not None:
            return [new_rows[name]]
        return mean_rows(stored, plan.constituents, cast(InitMethod, method), default)

    def replacement(name: str) -> Replacement:
        return Replacement(
            plan.weights.shape_of(name).with_rows(plan.rows),
            lambda stored: _expanded(plan, partial(new_blocks, name, stored), stored, norms.setdefault(name, {})),
        )

    replacements = {name: replacement(name) for name in plan.matrices}
    weight_map = {}
    with progress_bar(total=plan.total_bytes, desc="writing weights", unit="B", unit_scale=True) as bar:
        for shard in plan.weights.shards:
            rewrite_shard(shard, directory, replacements, bar.update)
            weight_map.update(dict.fromkeys(shard.tensors, shard.safetensors_name))
    if plan.weights.is_sharded:
        index = {"metadata": {"total_size": plan.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(directory / SAFETENSORS_INDEX, index)
    return norms


def _expanded(
    plan: ExpansionPlan,
    new_blocks: Callable[[np.ndarray], Iterable[np.ndarray]],
    stored: StoredTensor,
    norms: dict[str, float],
) -> Iterator[np.ndarray]:
    """Yields the rows of the new matrix in order: the source's, the new ones, the padding."""
    known, new = RowStatistics(), RowStatistics()
    for rows in _source_rows(plan, stored):
        known.add(stored.to_float(rows))
        yield rows
    _check_finite(plan, known)
    for rows in new_blocks(known.mean):
        new.add(rows)
        yield stored.from_float(rows)
    norms.update(source_rows=known.average_norm, new_rows=new.average_norm)
    yield np.tile(stored.from_float(known.mean), (plan.rows - plan.target_vocabulary, 1))


def _source_rows(plan: ExpansionPlan, stored: StoredTensor) -> Iterator[np.ndarray]:
    step = max(1, BLOCK_BYTES // (stored.shape.bytes // plan.source_rows))
    for start in range(0, plan.source_vocabulary, step):
        yield stored.rows(start, min(start + step, plan.source_vocabulary))


def _check_finite(plan: ExpansionPlan, known: RowStatistics) -> None:
    if not np.isfinite(known.mean).all():
        raise UserError(f"the embedding rows in {plan.source} have NaN or Inf: they are damaged; copy the model anew")


def describe(plan: ExpansionPlan, method: str, norms: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Builds the machine-readable report of an initialisation."""
    lengths = plan.constituents.lengths
    return {
        "source_model_and_tokenizer_path": str(plan.source),
        "target_tokenizer_path": str(plan.target_tokenizer),
        "init_method": method,
        "rows": {
            "kept": plan.source_vocabulary,
            "dropped_source_padding": plan.source_rows - plan.source_vocabulary,
            "new": plan.new_tokens,
            "new_without_constituents": int((lengths == 0).sum()),
            "padding": plan.rows - plan.target_vocabulary,
            "total": plan.rows,
        },
        "constituents_per_new_row": float(lengths.mean()) if plan.new_tokens else 0.0,
        "matrices": list(plan.matrices),
        "dtype": plan.weights.shape_of(plan.matrices[0]).dtype_name,
        "average_row_norm": {name: dict(values) for name, values in norms.items()},
        "config_corrections": list(plan.corrections),
        "weight_bytes": plan.total_bytes,
    }
