"""Quality by loss: nats per byte of documents under a model of the user; a band is kept.

CCNet sorts web pages by the perplexity of a model of good text in the same way (Wenzek et al.
2020); a loss per byte compares scripts and tokenizers, too. Measured are the documents that all
else has kept, as they would be written. They are measured in groups of a fixed size, so that a run
that was killed goes on to the same numbers. The results lie under work/:

    work/quality/chunk-00000.partial      losses of whole groups, until the chunk is finished
    work/quality/chunk-00000.losses       float64[documents], NaN for one that is not judged
    work/quality/chunk-00000.categories   uint16[documents]: number of its category
    work/quality/chunk-00000.json         names of the categories, checksums
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from colossal_llama.cleaning.chunk_files import UnitFiles, unit_facts
from colossal_llama.cleaning.document import Document, Verdict
from colossal_llama.cleaning.rule_settings import Rule
from colossal_llama.utils.console import log_rank_zero, progress_bar
from colossal_llama.utils.errors import UserError
from colossal_llama.utils.hub.names import ModelName

if TYPE_CHECKING:
    from colossal_llama.evaluation.models import EvaluatedModel

REASON: Final = "quality_loss"
ALL: Final = "all"
"""Name of the band of all categories, where `by_category` is false."""
_WINDOW_TOKENS = 1024
"""Longer texts are measured in windows that overlap by half. A model may have fewer positions."""
_LOSS = np.dtype(np.float64)
_DECIMALS = 5
"""Further ones depend on the batch that a text is computed in: equal texts would differ."""
_GROUP_DOCUMENTS = 256
_GROUP_BYTES = _GROUP_DOCUMENTS * _LOSS.itemsize
_DTYPES = {"cuda": "bf16", "cpu": "fp32"}
_COUNTED = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Quantiles that the report shows."""


def quality_base(work_dir: Path, chunk: int) -> Path:
    """Path of the results of a chunk, without their endings."""
    return work_dir / "quality" / f"chunk-{chunk:05d}"


@dataclass(frozen=True)
class QualityModel:
    """The model of `--quality_model`: found and checked, loaded when it has to measure."""

    found: "EvaluatedModel"

    @classmethod
    def find(cls, source: Path | ModelName) -> "QualityModel":
        """Finds the model.

        Raises:
            UserError: it cannot be evaluated.
        """
        from colossal_llama.evaluation.models import find_models

        try:
            [found] = find_models(source, (), 1)
        except UserError as error:
            raise UserError(
                [problem.replace("--model_path", "--quality_model") for problem in error.problems]
            ) from None
        return cls(found)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of weights and tokenizer: another model gives another corpus."""
        return " ".join(self.found.identity().values())

    @property
    def window_tokens(self) -> int:
        """Tokens that the model reads at once."""
        from colossal_llama.model.config_file import read_model_config

        positions = read_model_config(self.found.base).get("max_position_embeddings") or _WINDOW_TOKENS
        return min(_WINDOW_TOKENS, positions)

    @cached_property
    def losses(self) -> Callable[[Sequence[str]], list[float]]:
        """Function that measures texts: nats per byte, NaN where the tokenizer loses text."""
        from colossal_llama.evaluation.bits_per_byte import BitCounter, DocumentEncoder
        from colossal_llama.evaluation.models import check_memory, load
        from colossal_llama.evaluation.scoring import default_tokens_per_batch
        from colossal_llama.model.device import select_device

        device = select_device(None)
        dtype = _DTYPES.get(device.type, "bf16")
        check_memory(self.found, device, dtype)
        model, tokenizer = load(self.found, device, dtype, log_rank_zero)
        encoder, window = DocumentEncoder(tokenizer), self.window_tokens

        def measured(texts: Sequence[str]) -> list[float]:
            """Nats per byte of each text."""
            encoded = encoder.encode(texts)
            counter = BitCounter(model, window, max(1, window // 2), default_tokens_per_batch(device))
            bits = counter.count(document.ids for document in encoded)
            return [
                _nats_per_byte(found.bits, text) if document.is_lossless else math.nan
                for text, document, found in zip(texts, encoded, bits, strict=True)
            ]

        return measured


def _nats_per_byte(bits: float, text: str) -> float:
    """Loss of a text; infinite where it is not finite."""
    nats = bits * math.log(2) / len(text.encode("utf-8", "surrogatepass"))
    return round(nats, _DECIMALS) if math.isfinite(nats) else math.inf


def measure_chunks(
    work_dir: Path,
    chunks: Sequence[int],
    documents_of: Callable[[int], Iterable[Document]],
    model: QualityModel,
    rule: Rule,
) -> None:
    """Measures the documents of all chunks that are not measured yet.

    Args:
        work_dir: of the run.
        chunks: their numbers.
        documents_of: yields what is kept of a chunk, in order.
        model: that measures.
        rule: `quality_loss` of the settings.

    Raises:
        UserError: the model cannot be loaded, or its loss is not a finite number.
    """
    pending = [chunk for chunk in chunks if unit_facts(quality_base(work_dir, chunk), chunk) is None]
    with progress_bar(desc="quality by loss", unit="document") as bar:
        for number, chunk in enumerate(pending, start=1):
            bar.set_postfix_str(f"chunk {number} of {len(pending)}", refresh=False)
            documents = list(documents_of(chunk))
            _measure_chunk(quality_base(work_dir, chunk), chunk, documents, model, rule, bar.update)


def _measure_chunk(
    base: Path,
    chunk: int,
    documents: Sequence[Document],
    model: QualityModel,
    rule: Rule,
    progress: Callable[[int], Any],
) -> None:
    base.parent.mkdir(parents=True, exist_ok=True)
    partial = base.with_suffix(".partial")
    with partial.open("a+b") as file:
        measured = file.tell() // _GROUP_BYTES * _GROUP_DOCUMENTS
        file.truncate(measured * _LOSS.itemsize)
        for first in range(measured, len(documents), _GROUP_DOCUMENTS):
            group = documents[first : first + _GROUP_DOCUMENTS]
            texts = [document.text[: rule.values["beginning_characters"] or None] for document in group]
            file.write(_finite(np.array(model.losses(texts), _LOSS), group, model).tobytes())
            file.flush()
            progress(len(group))
        file.seek(0)
        losses = file.read()
    names = sorted({document.category for document in documents})
    numbers = {name: number for number, name in enumerate(names)}
    categories = np.array([numbers[document.category] for document in documents], np.uint16)
    files = UnitFiles(base, ("losses", "categories"))
    try:
        files.write("losses", losses)
        files.write("categories", categories.tobytes())
        files.finish({"index": chunk, "names": names})
    finally:
        files.discard()
    partial.unlink()


def _finite(losses: np.ndarray, group: Sequence[Document], model: QualityModel) -> np.ndarray:
    """Returns the losses as they are.

    Raises:
        UserError: one is infinite.
    """
    for place in np.flatnonzero(np.isinf(losses)).tolist():
        raise UserError(
            f"--quality_model {model.found.directory}: the loss of a document of {group[place].file} is not a finite "
            "number: the model's weights may be damaged"
        )
    return losses


@dataclass(frozen=True)
class Band:
    """Losses that are kept: from `low` to `high`, both included, each with the limit's name."""

    low: float
    low_limit: str
    high: float
    high_limit: str

    @classmethod
    def of(cls, losses: np.ndarray, rule: Rule) -> "Band":
        """Determines the band of documents of which these are the losses: the narrower limits."""
        values = rule.values
        lows = [(values["min_nats_per_byte"], f"min_nats_per_byte {values['min_nats_per_byte']:g}")]
        highs = [(values["max_nats_per_byte"], f"max_nats_per_byte {values['max_nats_per_byte']:g}")]
        if len(losses):
            low, high = np.quantile(losses, [values["min_quantile"], values["max_quantile"]]).tolist()
            lows.append((low, f"min_quantile {values['min_quantile']:g}: {low:.4g}"))
            highs.append((high, f"max_quantile {values['max_quantile']:g}: {high:.4g}"))
        return cls(*max(lows), *min(highs))

    def verdict(self, loss: float) -> Verdict | None:
        """The verdict about a document; None where it stays, also where its loss is not known."""
        if loss < self.low:
            return Verdict(REASON, round(loss, 4), self.low_limit)
        return Verdict(REASON, round(loss, 4), self.high_limit) if loss > self.high else None


@dataclass(frozen=True)
class QualityBands:
    """The bands of all categories, and the losses of all documents on disk."""

    work_dir: Path
    bands: dict[str, Band]
    facts: dict[str, Any]

    @classmethod
    def of_chunks(cls, work_dir: Path, chunks: Sequence[int], rule: Rule) -> "QualityBands":
        """Determines the bands from what `measure_chunks` has measured."""
        found: dict[str, list[np.ndarray]] = {}
        for chunk in chunks:
            losses, numbers, names = _results(work_dir, chunk)
            for number, name in enumerate(names):
                found.setdefault(name, []).append(losses[numbers == number])
        by_category = {name: np.concatenate(parts) for name, parts in sorted(found.items())}
        if rule.values["by_category"]:
            bands = {name: Band.of(losses[np.isfinite(losses)], rule) for name, losses in by_category.items()}
        else:
            losses = np.concatenate([*by_category.values(), np.empty(0)])
            bands = dict.fromkeys(by_category, Band.of(losses[np.isfinite(losses)], rule))
        facts = {name: _facts(losses, bands[name]) for name, losses in by_category.items()}
        return cls(work_dir, bands, facts)

    def of_chunk(self, chunk: int) -> list[Verdict | None]:
        """Verdicts about the documents of a chunk, in the order of `measure_chunks`."""
        losses, numbers, names = _results(self.work_dir, chunk)
        bands = [self.bands[name] for name in names]
        return [bands[number].verdict(loss) for loss, number in zip(losses.tolist(), numbers.tolist(), strict=True)]


def _results(work_dir: Path, chunk: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    base = quality_base(work_dir, chunk)
    facts = unit_facts(base, chunk)
    if facts is None:
        raise UserError(f"{base}.json does not exist, which the measurement wrote: run the command again")
    losses = np.fromfile(base.with_suffix(".losses"), _LOSS)
    return losses, np.fromfile(base.with_suffix(".categories"), np.uint16), facts["names"]


def _facts(losses: np.ndarray, band: Band) -> dict[str, Any]:
    """Facts of a category for the report."""
    known = losses[np.isfinite(losses)]
    quantiles = np.quantile(known, _COUNTED).round(4).tolist() if len(known) else []
    return {
        "documents": len(losses),
        "not_judged": len(losses) - len(known),
        "nats_per_byte": dict(zip(map(str, _COUNTED), quantiles, strict=False)),
        "kept_from": round(band.low, 6),
        "kept_to": round(band.high, 6),
    }
