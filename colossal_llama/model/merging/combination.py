"""Weighted sums of stored tensors in float64, block by block, and norms of their differences."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from colossal_llama.model.merging.row_plan import RowPlan, Weighting
from colossal_llama.model.merging.sources import MergeSource
from colossal_llama.model.weights.model_tensors import INPUT_MATRIX, OUTPUT_MATRIX
from colossal_llama.model.weights.stored_tensors import StoredTensor, TensorShape
from colossal_llama.utils.errors import UserError

_BLOCK_VALUES = 1 << 18
"""2 MB of float64: blocks of 8 M values took five times as long for each value."""


GROUPS = ("input embeddings", "attention", "mlp", "norms", "output embeddings")


def group_of(name: str) -> str:
    """Group of tensors whose difference is reported together."""
    if name in (INPUT_MATRIX, OUTPUT_MATRIX):
        return GROUPS[0] if name == INPUT_MATRIX else GROUPS[-1]
    return "attention" if ".self_attn." in name else "mlp" if ".mlp." in name else "norms"


@dataclass
class SquaredNorms:
    """Sums of squares by group of tensors, in float64.

    Attributes:
        reference: of the base; of the result where there is none.
        differences: of each model's difference from it.
    """

    reference: dict[str, float] = field(default_factory=dict)
    differences: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, group: str, reference: np.ndarray, model: str | None, values: np.ndarray | None = None) -> None:
        """Adds a block of the reference, or of a model's difference from it."""
        if model is None or values is None:
            self.reference[group] = self.reference.get(group, 0.0) + _square(reference)
            return
        of_model = self.differences.setdefault(model, {})
        of_model[group] = of_model.get(group, 0.0) + _square(values - reference)

    def report(self) -> dict[str, dict[str, dict[str, float]]]:
        """Norm of each model's difference by group, and its ratio to the reference's norm."""
        return {
            model: {
                group: {
                    "norm": groups[group] ** 0.5,
                    "relative": (groups[group] / (self.reference[group] or 1.0)) ** 0.5,
                }
                for group in GROUPS
                if group in groups
            }
            for model, groups in self.differences.items()
        }


def _square(values: np.ndarray) -> float:
    flat = values.reshape(-1)
    return float(np.dot(flat, flat))


@dataclass(frozen=True)
class Combination:
    """A merge: models, weights, rows, and the tensors that are written.

    Attributes:
        sources: the base first, if there is one.
        readers: of their tensors, by stored name.
        shapes: of the result, in order.
    """

    sources: Sequence[MergeSource]
    readers: Sequence[Callable[[str], StoredTensor]]
    weighting: Weighting
    rows: RowPlan
    shapes: dict[str, TensorShape]
    norms: SquaredNorms

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """Yields a tensor of the result in its dtype.

        Raises:
            UserError: a model has NaN or Inf there, or the result is beyond the dtype's range.
        """
        stored = [read(source.stored_name(name)) for source, read in zip(self.sources, self.readers, strict=True)]
        is_matrix = name in (INPUT_MATRIX, OUTPUT_MATRIX)
        parts = self._embedding_parts(stored) if is_matrix else self._flat_parts(stored, self.shapes[name])
        for values, present, coefficients in parts:
            self._refuse_nonfinite(name, values)
            total = _weighted_sum(values, present, coefficients)
            self._measure(group_of(name), total, values, present)
            yield self._converted(name, total)

    def _flat_parts(self, stored: list[StoredTensor], shape: TensorShape) -> Iterator[tuple]:
        coefficients = np.array(self.weighting.coefficients([True] * len(stored)))[:, None]
        length = int(np.prod(shape.shape, dtype=np.int64))
        for start in range(0, length, _BLOCK_VALUES):
            stop = min(start + _BLOCK_VALUES, length)
            values = [tensor.items(start, stop).astype(np.float64) for tensor in stored]
            yield values, np.ones((len(stored), 1), bool), coefficients

    def _embedding_parts(self, stored: list[StoredTensor]) -> Iterator[tuple]:
        step = max(1, _BLOCK_VALUES // stored[0].shape.shape[1])
        for start in range(0, self.rows.ids.shape[1], step):
            ids = self.rows.ids[:, start : start + step]
            values = []
            for tensor, wanted in zip(stored, ids, strict=True):
                rows = np.zeros((len(wanted), tensor.shape.shape[1]))
                rows[wanted >= 0] = tensor.stored_rows(wanted[wanted >= 0])
                values.append(rows)
            yield values, ids >= 0, self.rows.coefficients[:, start : start + step]

    def _refuse_nonfinite(self, name: str, values: list[np.ndarray]) -> None:
        for source, block in zip(self.sources, values, strict=True):
            if not np.isfinite(block).all():
                raise UserError(
                    f"{source.name} ({source.directory}) has NaN or Inf in {name}: it is damaged, or comes from a run "
                    "that diverged; copy the model again, or give an earlier checkpoint"
                )

    def _measure(self, group: str, total: np.ndarray, values: list[np.ndarray], present: np.ndarray) -> None:
        """Adds the block to the norms; rows count that a model and the base share."""
        has_base = self.weighting.has_base
        reference, known = (values[0], present[0]) if has_base else (total, np.ones_like(present[0]))
        self.norms.add(group, reference, None)
        for source, block, here in list(zip(self.sources, values, present, strict=True))[has_base:]:
            shared = here & known
            if shared.all():
                self.norms.add(group, reference, source.name, block)
            else:
                self.norms.add(group, reference[shared], source.name, block[shared])

    def _converted(self, name: str, total: np.ndarray) -> np.ndarray:
        shape = self.shapes[name]
        with np.errstate(over="ignore", under="ignore"):
            converted = total.astype(shape.storage_dtype)
        if not np.isfinite(converted).all():
            raise UserError(
                f"{name} of the result has values up to {float(np.abs(total).max()):.6g}, beyond the range of "
                f"{shape.dtype_name}: give --dtype bfloat16 or float32, or smaller weights"
            )
        return converted


def _weighted_sum(values: list[np.ndarray], present: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Adds up a block.

    Args:
        values: of each source, float64: [values], or [rows, width].
        present: [sources, 1 or rows]: True where a source has the values.
        coefficients: likewise.
    """
    total = np.full(values[0].shape, -0.0)  # the zero that changes nothing: 0 + -0 is 0
    for block, here, factor in zip(values, present, coefficients, strict=True):
        used = here & (factor != 0)
        if not used.any():
            continue
        if len(factor) == 1 or (used.all() and (factor == factor[0]).all()):
            total += block if factor[0] == 1 else factor[0] * block
        else:
            total[used] += factor[used, None] * block[used]
    return total
