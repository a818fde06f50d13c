"""GPTQ for every quantized tensor type: codes that make up for one another's errors.

The error of a linear's outputs is tr(D H Dᵀ), D = W' - W, with H = XᵀX / N of its inputs X. Scales
are fitted first and stay; columns are rounded in descending order of diag(H), each moving the
targets of those after it (GPTQ, arXiv 2210.17323); then scales and codes descend on that error.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np

from quantcli.blas import one_thread
from quantcli.errors import BadInputError
from quantcli.kernels.descent import descend
from quantcli.kernels.linear_algebra import inverse_factor
from quantcli.kernels.sweep import sweep
from quantcli.tensor_types import TensorType

DAMPING = 0.01  # of the mean of diag(H)
MOST_DAMPING = 1.0
CORRECTION_DAMPING = 0.03
STRIP = 2048  # rows that one thread works on


@dataclass(frozen=True)
class Metric:
    """What the linears of one site share; `h` is the caller's and must not change.

    ridge f32[n]: what damping adds to diag(h); order: columns in descending order of the diagonal;
    factor f32[n, n]: U in this order, inverse(H) = UᵀU, None if no damping helped;
    importance f32[n]: 1 / diag(inverse(H)) over its mean, of the errors that scales are fitted to.
    """

    h: np.ndarray
    ridge: np.ndarray
    order: np.ndarray
    factor: np.ndarray | None
    importance: np.ndarray

    @classmethod
    def of(cls, h: np.ndarray, damping: float = DAMPING, threads: int = 1) -> Self:
        """Prepare h f32[n, n], symmetric and positive semidefinite.

        Inputs that are always 0 count as if they were average ones. Damping is a share of the
        mean of diag(h) and grows tenfold, up to 1, while h has no Cholesky factor.
        Raises BadInputError: h is not finite.
        """
        diagonal = np.diag(h).astype(np.float64)
        if not (np.isfinite(h.sum(dtype=np.float64)) and diagonal.min() >= 0):
            raise BadInputError(
                "second moments of activations are not finite or negative: the calibration data "
                "or the model's weights are broken"
            )
        alive = diagonal > 0
        mean = diagonal[alive].mean() if alive.any() else 1.0
        diagonal[~alive] = mean
        order = np.argsort(-diagonal, kind="stable")
        factor = None
        while factor is None and damping <= MOST_DAMPING:
            ridge = np.where(alive, damping * mean, (1 + damping) * mean).astype(np.float32)
            factor = _factor(h, ridge, order, threads)
            damping *= 10
        importance = diagonal
        if factor is not None:
            importance[order] = 1 / np.einsum("ij,ij->j", factor, factor)
        importance = np.maximum(importance / importance.mean(), 1e-6).astype(np.float32)
        return cls(h, ridge, order, factor, importance)


@dataclass(frozen=True)
class Correction:
    """For inputs that have changed since the float model: what W X loses of W Y, told from X.

    drift f32[n, n]: (Y - X)ᵀX / N; factor f32[n, n]: U, inverse(H + damping) = UᵀU, None if no
    damping made H positive definite: nothing is corrected then.
    """

    drift: np.ndarray
    factor: np.ndarray | None

    @classmethod
    def of(cls, h: np.ndarray, drift: np.ndarray, threads: int = 1) -> Self:
        """h = XᵀX / N f32[n, n] of the inputs X that the quantized model sees."""
        damping, mean = CORRECTION_DAMPING, max(float(np.diag(h).mean(dtype=np.float64)), 1e-30)
        factor = None
        while factor is None and damping <= MOST_DAMPING:
            ridge = np.full(len(h), damping * mean, np.float32)
            factor = _factor(h, ridge, np.arange(len(h)), threads)
            damping *= 10
        return cls(drift, factor)

    def target(self, w: np.ndarray, threads: int = 1) -> np.ndarray:
        """W + W C inverse(H + .03 mean(diag H)) of w f32[rows, n] (GPTAQ, arXiv 2504.02692)."""
        factor = self.factor
        if factor is None:
            return w
        target = np.empty(w.shape, np.float32)

        def work(strip: slice) -> None:
            missing = ((w[strip] @ self.drift) @ factor.T) @ factor
            np.add(w[strip], missing, out=target[strip])

        _each(work, _cut(len(w)), threads)
        return target


def quantize(
    w: np.ndarray,
    metric: Metric,
    kind: TensorType,
    *,
    passes: int | None = None,
    threads: int = 1,
    first_row: int = 0,
) -> np.ndarray:
    """Rows w f32[rows, n] in one type: packed u8[rows, row_bytes].

    passes: of descent after the sweep; 2, or 1 for types of more than 5 bits, unless given. If
    h had no factor there is no sweep, but one pass more. Bytes do not depend on threads.
    Raises BadInputError: see TensorType.encode; first_row is where w begins in its tensor.
    """
    if passes is None:
        passes = 1 if 8 * kind.type_size > 5 * kind.block_size else 2
    packed = np.empty((len(w), kind.row_bytes(w.shape[1])), np.uint8)

    def work(strip: slice) -> None:
        packed[strip] = _strip(w[strip], metric, kind, passes, first_row + strip.start)

    _each(work, _cut(len(w)), threads)
    return packed


def output_error(w: np.ndarray, decoded: np.ndarray, h: np.ndarray, threads: int = 1) -> np.ndarray:
    """(w - decoded) H (w - decoded)ᵀ of each row, float64[rows]: its output's mean squared error.

    w, decoded: f32[rows, n]; h: f32[n, n], XᵀX / N of the inputs; the sum over rows is the trace.
    """
    errors = np.empty(len(w))

    def work(strip: slice) -> None:
        difference = decoded[strip] - w[strip]
        errors[strip] = np.einsum("ij,ij->i", difference @ h, difference, dtype=np.float64)

    _each(work, _cut(len(w)), threads)
    return errors


def _factor(h: np.ndarray, ridge: np.ndarray, order: np.ndarray, threads: int) -> np.ndarray | None:
    """U of h + ridge in that order, None where there is none."""
    a = h[order[:, None], order]
    a[np.diag_indices(len(a))] += ridge[order]
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        try:
            return inverse_factor(a, pool)
        except np.linalg.LinAlgError:
            return None


def _strip(
    w: np.ndarray, metric: Metric, kind: TensorType, passes: int, first_row: int
) -> np.ndarray:
    """quantize for a few rows."""
    weights = _fit_weights(w, metric.importance, kind.block_size)
    lattice = kind.lattice(w, weights, first_row=first_row)
    target = np.ascontiguousarray(w.T, np.float32)
    if metric.factor is None:
        levels, passes = lattice.nearest(target), passes + 1
    else:
        levels = sweep(target.copy(), metric.factor, metric.order, lattice)
    descend(levels, lattice, target, metric.h, metric.ridge, passes)
    return kind.pack_lattice(levels, lattice)


def _fit_weights(w: np.ndarray, importance: np.ndarray, block_size: int) -> np.ndarray:
    """importance * sqrt(1 + w² / mean of w² in its block): f32[rows, n].

    Large weights count more, as in ggml's searches with an imatrix.
    """
    weights = np.square(w.reshape(-1, block_size), dtype=np.float32)
    mean = weights.mean(axis=1, keepdims=True)
    weights /= np.maximum(mean, np.float32(1e-30))
    weights += np.float32(1)
    np.sqrt(weights, out=weights)
    by_row = weights.reshape(w.shape)
    by_row *= importance
    return by_row


def _cut(rows: int) -> list[slice]:
    return [slice(start, min(start + STRIP, rows)) for start in range(0, rows, STRIP)]


def _each(work: Callable[[slice], None], strips: list[slice], threads: int) -> None:
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, strips))
