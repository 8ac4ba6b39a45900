"""Quality by loss: nats per byte of documents under a model of the user; a band is kept.

CCNet sorts web pages by the perplexity of a model of good text in the same way (Wenzek et al.
2020); a loss per byte compares scripts and tokenizers, too. Measured are the documents that all
else has kept, as they would be written. A chunk is measured as a whole, so that a run that was
killed goes on to the same numbers, and its results lie under work/:

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

if TYPE_CHECKING:
    from colossal_llama.evaluation.models import EvaluatedModel

REASON: Final = "quality_loss"
ALL: Final = "all"
"""Name of the band of all categories, where `by_category` is false."""
_WINDOW_TOKENS = 1024
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
    def find(cls, directory: Path) -> "QualityModel":
        """Finds the model.

        Raises:
            UserError: it cannot be evaluated.
        """
        from colossal_llama.evaluation.models import find_models

        try:
            [found] = find_models(directory, (), _WINDOW_TOKENS)
        except UserError as error:
            raise UserError(
                [problem.replace("--model_path", "--quality_model") for problem in error.problems]
            ) from None
        return cls(found)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of weights and tokenizer: another model gives another corpus."""
        return " ".join(self.found.identity().values())

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
        encoder = DocumentEncoder(tokenizer)

        def measured(texts: Sequence[str]) -> list[float]:
            encoded = encoder.encode(texts)
            counter = BitCounter(model, _WINDOW_TOKENS, _WINDOW_TOKENS // 2, default_tokens_per_batch(device))
            bits = counter.count(document.ids for document in encoded)
            return [
                found.bits * math.log(2) / len(text.encode("utf-8", "surrogatepass"))
                if document.is_lossless
                else math.nan
                for text, document, found in zip(texts, encoded, bits, strict=True)
            ]

        return measured


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
    for chunk in progress_bar(pending, desc="quality by loss", unit="chunk"):
        documents = list(documents_of(chunk))
        texts = [document.text[: rule.values["beginning_characters"] or None] for document in documents]
        losses = np.array(model.losses(texts) if texts else [], np.float64)
        if np.isinf(losses).any():
            document = documents[int(np.flatnonzero(np.isinf(losses))[0])]
            raise UserError(
                f"--quality_model {model.found.directory}: the loss of a document of {document.file} is no finite "
                "number: the model's weights may be damaged"
            )
        names = sorted({document.category for document in documents})
        numbers = {name: number for number, name in enumerate(names)}
        categories = np.array([numbers[document.category] for document in documents], np.uint16)
        files = UnitFiles(quality_base(work_dir, chunk), ("losses", "categories"))
        try:
            files.write("losses", losses.tobytes())
            files.write("categories", categories.tobytes())
            files.finish({"index": chunk, "names": names})
        finally:
            files.discard()


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
    losses = np.fromfile(base.with_suffix(".losses"), np.float64)
    return losses, np.fromfile(base.with_suffix(".categories"), np.uint16), facts["names"]


def _facts(losses: np.ndarray, band: Band) -> dict[str, Any]:
    """What the report tells of a category."""
    known = losses[np.isfinite(losses)]
    quantiles = np.quantile(known, _COUNTED).round(4).tolist() if len(known) else []
    return {
        "documents": len(losses),
        "not_judged": len(losses) - len(known),
        "nats_per_byte": dict(zip(map(str, _COUNTED), quantiles, strict=False)),
        "kept_from": round(band.low, 6),
        "kept_to": round(band.high, 6),
    }
