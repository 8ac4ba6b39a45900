"""Merged model: planned on headers and tokenizers, then streamed into a new directory."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import colossal_llama
from colossal_llama.model.expansion.new_rows import first_new_row, new_rows_trained, record_of_new_rows
from colossal_llama.model.merging.arguments import BASE, NONE, MergeArguments, resolve_name
from colossal_llama.model.merging.chat_format import (
    ChatFormat,
    choose_format,
    model_configs,
    other_templates,
    tokenizer_files,
)
from colossal_llama.model.merging.combination import Combination, SquaredNorms
from colossal_llama.model.merging.row_plan import RowPlan, Weighting, plan_rows
from colossal_llama.model.merging.sources import MergeSource, notes, open_sources
from colossal_llama.model.weights.model_tensors import INPUT_MATRIX, OUTPUT_MATRIX, open_files
from colossal_llama.model.weights.shards import write_shards
from colossal_llama.model.weights.stored_tensors import TensorShape
from colossal_llama.tokenizer.expansion.result import REPORT_FILE
from colossal_llama.tokenizer.loading import load_tokenizer
from colossal_llama.utils.atomic_io import atomic_directory, write_bytes, write_json
from colossal_llama.utils.checksums import write_checksums
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.disk_space import check_free_space
from colossal_llama.utils.environment import peak_memory_bytes
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.fingerprint import fingerprint_directory
from colossal_llama.utils.hub.fetch import option_directory, origin_record
from colossal_llama.utils.hub.files import Needed

MERGE_REPORT = "merge_report.json"
_HANDED_ON = (REPORT_FILE, "init_report.json")
"""Records of the vocabulary's model: which rows an expansion has added."""
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class MergePlan:
    """Decisions taken before the first byte is written.

    Attributes:
        sources: the base first, if there is one.
        weighting: of the models.
        chat: tokenizer and chat format of the result.
        rows: of its embeddings.
        shapes: of its tensors, in order.
        is_tied: True where it has one matrix for both embeddings.
        notes: sentences for the user.
    """

    sources: tuple[MergeSource, ...]
    weighting: Weighting
    chat: ChatFormat
    rows: RowPlan
    shapes: dict[str, TensorShape]
    is_tied: bool
    notes: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """Size of all tensors of the result."""
        return sum(shape.bytes for shape in self.shapes.values())

    @property
    def dtype(self) -> str:
        """The dtype that most values have, PyTorch's name."""
        sizes: Counter[str] = Counter()
        for shape in self.shapes.values():
            sizes[shape.dtype_name] += math.prod(shape.shape)
        return sizes.most_common(1)[0][0]


def plan_merge(arguments: MergeArguments) -> MergePlan:
    """Opens all models and decides what the result is made of.

    Raises:
        UserError: models are missing, damaged, or do not fit together.
    """
    sources = _opened(arguments)
    weighting = Weighting(arguments.model_weights, has_base=arguments.models.base is not None)
    in_order = (*sources[1:], sources[0]) if weighting.has_base else sources  # the base is asked last
    owner = _named(in_order, arguments.vocabulary.tokenizer_of)
    if owner is None:
        owner = max(in_order, key=_tokens_but_special)
    asked = arguments.vocabulary.chat_of
    chat = choose_format(in_order, owner, NONE if asked == NONE else _named(in_order, asked))
    rows = plan_rows(
        {source.name: source.vocabulary for source in sources},
        {source.name: source.rows for source in sources},
        chat.vocabulary,
        chat.rows,
        weighting,
    )
    is_tied = all(source.is_tied for source in sources)
    shapes = _target_shapes(sources[0], chat.rows, is_tied, arguments.vocabulary.dtype)
    said = [*notes(sources)]
    if arguments.models.weights and weighting.weights != arguments.models.weights:
        shown = ", ".join(f"{weight:g}" for weight in weighting.weights)
        said.append(f"the weights are divided by their sum: {shown}")
    if asked is None and (others := other_templates(in_order, chat)):
        said.append(
            f"the chat template is that of {chat.template_of}, and {', '.join(others)} "
            f"{'has' if len(others) == 1 else 'have'} another: --chat_of takes it"
        )
    return MergePlan(sources, weighting, chat, rows, shapes, is_tied, tuple(said))


def _opened(arguments: MergeArguments) -> tuple[MergeSource, ...]:
    given = [*enumerate(map(str, arguments.models.models), 1)]
    repeated = {name for name, times in Counter(name for _, name in given).items() if times > 1}
    directories: dict[str, Path] = {}
    if arguments.models.base is not None:
        directories[BASE] = option_directory("--base", arguments.models.base, Needed.MODEL)
    for (number, name), model in zip(given, arguments.models.models, strict=True):
        key = f"{name} ({number})" if name in repeated else name
        directories[key] = option_directory("--models", model, Needed.MODEL)
    return open_sources(directories)


def _tokens_but_special(source: MergeSource) -> int:
    """Size of a vocabulary without control tokens, which a chat model may have in addition."""
    return len(source.vocabulary) - sum(token.special for token in source.tokenizer.added_tokens_decoder.values())


def _named(sources: Sequence[MergeSource], given: str | None) -> MergeSource | None:
    if given is None:
        return None
    name = resolve_name(given, [source.name for source in sources])
    return next(source for source in sources if source.name == name or source.name.startswith(f"{given} ("))


def _target_shapes(first: MergeSource, rows: int, is_tied: bool, dtype: str | None) -> dict[str, TensorShape]:
    """Shapes of the result's tensors in the first model's dtypes, or in `--dtype`."""
    shapes = {name: shape for name, shape in first.shapes.items() if name != OUTPUT_MATRIX}
    if not is_tied:
        shapes[OUTPUT_MATRIX] = first.shapes.get(OUTPUT_MATRIX, first.shapes[INPUT_MATRIX])
    for name in {INPUT_MATRIX, OUTPUT_MATRIX} & shapes.keys():
        shapes[name] = shapes[name].with_rows(rows)
    return {name: TensorShape(shape.shape, _DTYPES[dtype] if dtype else shape.dtype) for name, shape in shapes.items()}


def _record_of_new_rows(plan: MergePlan) -> dict[str, bytes]:
    """The record of the vocabulary's new rows: trained where those of one of the models are."""
    known = {new_rows_trained(source.directory) for source in plan.sources}
    trained = True if True in known else new_rows_trained(plan.chat.owner.directory)
    return record_of_new_rows(first_new_row(plan.chat.owner.directory), trained)


def write_merge(plan: MergePlan, directory: Path, started: float) -> dict[str, Any]:
    """Writes the model with its report, complete or not at all; returns the report.

    Args:
        plan: what is written.
        directory: does not exist.
        started: `time.monotonic()` at the beginning, for the report.

    Raises:
        UserError: there is too little disk space, or a model has NaN or Inf.
    """
    check_free_space(plan.total_bytes, directory, "the merged model", "give another --output_dir")
    with atomic_directory(directory) as output:
        for name, content in tokenizer_files(plan.chat).items():
            (output / name).parent.mkdir(exist_ok=True)
            write_bytes(output / name, content)
        _check_vocabulary(plan.chat, output)  # before the weights, which take minutes
        norms = SquaredNorms()
        with _readers(plan.sources) as readers:
            combination = Combination(plan.sources, readers, plan.weighting, plan.rows, plan.shapes, norms)
            checksums = write_shards(plan.shapes, combination.blocks, _MAX_SHARD_BYTES, output)
        names = _HANDED_ON[1:] if plan.chat.added else _HANDED_ON  # whose sizes are the expanded tokenizer's
        records = [path for name in names if (path := plan.chat.owner.directory / name).is_file()]
        handed_on = {path.name: path.read_bytes() for path in records}
        for name, content in (handed_on | _record_of_new_rows(plan)).items():
            write_bytes(output / name, content)
        for name, config in model_configs(plan.chat, plan.is_tied, plan.dtype).items():
            write_json(output / name, config)
        seconds = round(time.monotonic() - started, 2)
        report = describe(plan, norms) | {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes()}
        write_json(output / MERGE_REPORT, report)
        write_checksums(output, checksums)
    return report


@contextmanager
def _readers(sources: Sequence[MergeSource]) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(open_files(source.shards))[1] for source in sources]


def _check_vocabulary(chat: ChatFormat, output: Path) -> None:
    """Compares the tokenizer that was written with the one that the rows were matched with."""
    found, wanted = load_tokenizer(output).get_vocab(), chat.vocabulary
    if found != wanted and chat.donor is not None:
        wrong = sorted(token for token in found.keys() | wanted.keys() if found.get(token) != wanted.get(token))
        raise UserError(
            f"the tokenizer of {chat.owner.directory} cannot be given the tokens of {chat.donor.directory}: "
            f"{len(wrong):,} would have other ids, for example {wrong[0]!r}; give --chat_of {NONE}, or --tokenizer_of "
            f"{chat.donor.name}"
        )


def describe(plan: MergePlan, norms: SquaredNorms) -> dict[str, Any]:
    """Builds the content of merge_report.json."""
    sources, has_base = plan.sources, plan.weighting.has_base
    described = [_described(source) for source in sources]
    models = [
        {**model, "weight": weight} for model, weight in zip(described[has_base:], plan.weighting.weights, strict=True)
    ]
    return {
        "format": "colossal_llama.merge.1",
        "version": colossal_llama.__version__,
        "base": described[0] if has_base else None,
        "models": models,
        "tokenizer_of": plan.chat.owner.name,
        "chat_of": plan.chat.template_of,
        "added_tokens": [token.content for token in plan.chat.added],
        "rows": plan.rows.counts,
        "differences_from": BASE if has_base else "result",
        "differences": norms.report(),
        "dtype": plan.dtype,
        "tied_embeddings": plan.is_tied,
        "weight_bytes": plan.total_bytes,
        "notes": list(plan.notes),
    }


def _described(source: MergeSource) -> dict[str, Any]:
    return {
        "name": source.name,
        "path": str(source.directory),
        "fingerprint": fingerprint_directory(source.directory),
        "tokens": len(source.vocabulary),
        "rows": source.rows,
        "dtype": source.shapes[INPUT_MATRIX].dtype_name,
        **origin_record(source.directory),
    }


def say_plan(plan: MergePlan) -> None:
    """Logs what was noticed before the weights are read."""
    for note in plan.notes:
        log_rank_zero(f"note: {note}")
