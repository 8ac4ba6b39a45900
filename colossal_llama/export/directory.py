"""Directory of an export: planned, written under a temporary name, then checked and recorded."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import colossal_llama
from colossal_llama.export.arguments import CardArguments, CheckArguments, ExportArguments, size_bytes
from colossal_llama.export.check import check_export
from colossal_llama.export.conversion import ConversionCounts, converted_blocks, target_shape
from colossal_llama.export.gguf import check_gguf
from colossal_llama.export.gguf_file import add_gguf, gguf_bytes, gguf_name
from colossal_llama.export.lineage import trace_lineage
from colossal_llama.export.model_card import CARD_FILE, model_card
from colossal_llama.export.output_directory import complete_directory
from colossal_llama.export.small_files import not_copied, notices, small_files
from colossal_llama.export.source import ExportSource, name_of, open_source
from colossal_llama.export.weights import Weights, open_weights
from colossal_llama.model.weights.adapter_files import ADAPTER_WEIGHTS, adapter_base_name
from colossal_llama.model.weights.shards import write_shards, write_weight_files
from colossal_llama.model.weights.stored_tensors import TensorShape
from colossal_llama.utils.atomic_io import write_bytes, write_json
from colossal_llama.utils.checksums import FileChecksum, read_checksums, write_checksums
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.disk_space import check_free_space
from colossal_llama.utils.environment import peak_memory_bytes
from colossal_llama.utils.errors import UserError

RECORD_FILE = "export.json"


def export(arguments: ExportArguments) -> None:
    """Writes the export, checks it under --check, and prints a summary.

    Raises:
        UserError: the source cannot be exported, or the check has failed; in the latter case the
            export is complete and stays.
    """
    started = time.monotonic()
    source = open_source(arguments.weights.model_path, arguments.weights.merge)
    output = arguments.weights.output_dir.resolve()
    _refuse_overlap(source, output)
    if arguments.weights.gguf and source.adapter and not arguments.weights.merge:
        raise UserError("--gguf holds a whole model, and the source is an adapter: add --merge")
    if arguments.weights.gguf:
        check_gguf(source.base, source.tokenizer)
    record = write_directory(arguments, source, output)
    record |= {"seconds": round(time.monotonic() - started, 2), "peak_memory_bytes": peak_memory_bytes()}
    save_record(output, record)
    print_summary(record, output)
    if arguments.check.check:
        gguf = record["gguf"]["file"] if record["gguf"] else None
        record["check"] = _checked(arguments.check, source, output, gguf)
        save_record(output, record)


def _checked(options: CheckArguments, source: ExportSource, output: Path, gguf: str | None) -> dict[str, Any]:
    try:
        return check_export(options, source, output, gguf)
    except UserError as error:
        raise UserError(f"{error}. What was written stays in {output}") from error


def _refuse_overlap(source: ExportSource, output: Path) -> None:
    for directory in (source.directory.resolve(), source.base.resolve()):
        if output.is_relative_to(directory):
            raise UserError(f"--output_dir {output} lies in the model's directory {directory}: give one outside it")


def write_directory(arguments: ExportArguments, source: ExportSource, output: Path) -> dict[str, Any]:
    """Writes all files of the export but its record; returns what belongs into the record."""
    options, counts = arguments.weights, ConversionCounts()
    with open_weights(source, options.merge) as weights:
        targets = {name: target_shape(name, shape, options.dtype) for name, shape in weights.shapes.items()}
        _check_disk_space(targets, options.gguf, output)
        with complete_directory(output) as directory:
            checksums = _write_weights(weights, targets, size_bytes(options.max_shard_size), directory, counts)
            small = small_files(source, weights.tied, _dtype_of(targets), arguments.card.base_model)
            small |= notices(dict.fromkeys((source.directory, source.base)))
            _write_small_files(directory, small)
            record = _record(arguments, source, output, weights, targets) | {
                "weight_files": sorted(checksums),
                "values_that_became_zero": counts.became_zero,
                "files_not_copied": not_copied(_exported_directories(source, options.merge), small),
            }
            if options.gguf:
                record["gguf"] = add_gguf(directory, gguf_name(output, options.gguf), options.gguf)
            if arguments.card.model_card:
                _write_small_files(directory, _card_files(arguments.card, source, record, small))
            write_checksums(directory, checksums)
    return record


def _exported_directories(source: ExportSource, merge: bool) -> tuple[Path, ...]:
    """The directories whose model or adapter is in the export."""
    return tuple(dict.fromkeys((source.directory, source.base) if merge else (source.directory,)))


def _record(
    arguments: ExportArguments, source: ExportSource, output: Path, weights: Weights, targets: Mapping[str, TensorShape]
) -> dict[str, Any]:
    return {
        "format": "colossal_llama.export.1",
        "version": colossal_llama.__version__,
        "name": output.name,
        "source": name_of(source.directory),
        "kind": "model" if not source.adapter else "merged" if arguments.weights.merge else "adapter",
        "base": arguments.card.base_model or name_of(source.base) if source.adapter else None,
        "dtypes": dict(Counter(shape.dtype_name for shape in targets.values())),
        "weight_bytes": sum(shape.bytes for shape in targets.values()),
        "values": _values_in(targets),
        "tied_embeddings": weights.tied,
        "tensors_left_out": list(weights.left_out),
        "gguf": None,
        "check": None,
    }


def _card_files(
    options: CardArguments, source: ExportSource, record: Mapping[str, Any], there: Mapping[str, bytes]
) -> dict[str, bytes]:
    """The model card, and licences of the models on the way that are not there yet."""
    lineage = trace_lineage(source.directory, options.records)
    found = notices(lineage.directories)
    card = model_card(options, source, lineage, record)
    return {**{name: found[name] for name in found if name not in there}, CARD_FILE: card.encode("utf-8")}


def _write_weights(
    weights: Weights,
    targets: Mapping[str, TensorShape],
    max_bytes: int,
    directory: Path,
    counts: ConversionCounts,
) -> dict[str, FileChecksum]:
    def blocks(name: str) -> Iterator[np.ndarray]:
        return converted_blocks(name, weights.read(name), targets[name], counts)

    if weights.tied is None:  # peft reads one file of this name
        return write_weight_files(targets, blocks, {ADAPTER_WEIGHTS: list(targets)}, directory)
    return write_shards(targets, blocks, max_bytes, directory)


def _write_small_files(directory: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_bytes(directory / name, content)


def _dtype_of(targets: Mapping[str, TensorShape]) -> str:
    """The dtype that most values have, PyTorch's name."""
    sizes: Counter[str] = Counter()
    for shape in targets.values():
        sizes[shape.dtype_name] += math.prod(shape.shape)
    return sizes.most_common(1)[0][0]


def _values_in(targets: Mapping[str, TensorShape]) -> int:
    return sum(math.prod(shape.shape) for shape in targets.values())


def _check_disk_space(targets: Mapping[str, TensorShape], gguf: str | None, output: Path) -> None:
    needed = sum(shape.bytes for shape in targets.values())
    if gguf:
        needed += gguf_bytes(_values_in(targets), gguf)
    check_free_space(needed, output, "the export", "give another --output_dir")


def save_record(output: Path, record: Mapping[str, Any]) -> None:
    """Writes export.json, and adds its checksum to the list."""
    known = {name: entry for name, entry in read_checksums(output).items() if name != RECORD_FILE}
    write_json(output / RECORD_FILE, record)
    write_checksums(output, known)


def print_summary(record: Mapping[str, Any], output: Path) -> None:
    """Prints what was written, what was changed and what was left out."""
    source = record["source"]
    kinds = {"merged": f"adapter {source} merged into its base", "adapter": f"adapter {source}"}
    dtypes = ", ".join(f"{count:,} tensors {name}" for name, count in record["dtypes"].items())
    files = len(record["weight_files"])
    log_rank_zero(
        f"{kinds.get(record['kind'], f'model {source}')}: {record['values']:,} values, {dtypes}, "
        f"{record['weight_bytes'] / 1e9:.2f} GB in {files} file{'s' if files > 1 else ''}"
        f"{', embeddings tied' if record['tied_embeddings'] else ''}"
    )
    if record["values_that_became_zero"]:
        share = record["values_that_became_zero"] / record["values"]
        log_rank_zero(f"{record['values_that_became_zero']:,} values ({share:.2g} of all) are too small and became 0")
    for what, key in (("tensors left out", "tensors_left_out"), ("files not copied", "files_not_copied")):
        if record[key]:
            log_rank_zero(f"{what}: {', '.join(record[key])}")
    if record["gguf"]:
        log_rank_zero(f"GGUF: {record['gguf']['file']}, {record['gguf']['bytes'] / 1e9:.2f} GB")
        for note in record["gguf"]["notes"]:
            log_rank_zero(f"  {note}")
    if record["kind"] == "adapter" and Path(base := adapter_base_name(output)).is_absolute():
        log_rank_zero(f"the adapter names its base by its path here, {base}: give --base_model ORG/NAME for others")
    what = "adapter" if record["kind"] == "adapter" else "model"
    memory_gb = record["peak_memory_bytes"] / 1e9
    log_rank_zero(f"{record['seconds']:.1f} s, peak memory {memory_gb:.2f} GB; complete {what} in {output}")
