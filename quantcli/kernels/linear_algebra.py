"""Factors of symmetric positive definite matrices, blocked so that most of the work is GEMM.

Matrices are float32; the blocks on the diagonal are factored and inverted in float64. Panels and
pieces are of fixed sizes: results do not depend on the number of threads, provided that BLAS
itself uses one (quantcli.blas.one_thread).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

PANEL = 256  # columns that are factored together
PIECE = 1024  # rows of a panel that one thread multiplies


def inverse_factor(a: np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
    """Turn symmetric a f32[n, n] into upper triangular U with inverse(a) = UᵀU, in place.

    Reads the upper triangle only. This is what GPTQ (arXiv 2210.17323, section 3.3) calls
    Cholesky(inverse(H))ᵀ, without the inverse: a = V Vᵀ with V upper, U = inverse(V).
    Raises numpy.linalg.LinAlgError if a is not positive definite, a being lost.
    """
    panels = [slice(start, min(start + PANEL, len(a))) for start in range(0, len(a), PANEL)]
    inverses = [_upper_factor(a, panel, pool) for panel in reversed(panels)][::-1]
    for panel, inverse in zip(panels, inverses, strict=True):
        _invert_panel(a, panel, inverse, pool)
    return a


def _upper_factor(a: np.ndarray, panel: slice, pool: ThreadPoolExecutor) -> np.ndarray:
    """Columns `panel` of V, those right of it being done; returns the inverse of its diagonal.

    V[i, k] = (a[i, k] - sum over j > k of V[i, j] V[k, j]ᵀ) inverse(V[k, k])ᵀ
    """
    right = slice(panel.stop, None)
    row = np.ascontiguousarray(a[panel, right].T)

    def subtract(rows: slice) -> None:
        a[rows, panel] -= a[rows, right] @ row

    if len(row):
        _in_pieces(pool, subtract, panel.stop)
    flipped = a[panel, panel][::-1, ::-1].astype(np.float64)
    lower = np.linalg.cholesky(flipped)  # reads the triangle that is the upper one in a
    if not np.isfinite(lower).all():
        raise np.linalg.LinAlgError("Matrix is not finite")
    inverse = np.tril(np.linalg.inv(lower))[::-1, ::-1].astype(np.float32)
    solve = np.ascontiguousarray(inverse.T)

    def divide(rows: slice) -> None:
        a[rows, panel] = a[rows, panel] @ solve

    _in_pieces(pool, divide, panel.start)
    return inverse


def _invert_panel(
    a: np.ndarray, panel: slice, inverse: np.ndarray, pool: ThreadPoolExecutor
) -> None:
    """Columns `panel` of U, those left of it being done; zeros below the diagonal.

    U[i, k] = -(sum over i <= j < k of U[i, j] V[j, k]) U[k, k]
    """
    above = a[: panel.start, panel].copy()
    a[panel, panel] = inverse
    a[panel.stop :, panel] = 0

    def multiply(rows: slice) -> None:
        a[rows, panel] = -(a[rows, rows.start : panel.start] @ above[rows.start :]) @ inverse

    _in_pieces(pool, multiply, panel.start)


def _in_pieces(pool: ThreadPoolExecutor, work: Callable[[slice], None], rows: int) -> None:
    pieces = [slice(start, min(start + PIECE, rows)) for start in range(0, rows, PIECE)]
    if len(pieces) > 1:
        list(pool.map(work, pieces))
    elif pieces:
        work(pieces[0])
