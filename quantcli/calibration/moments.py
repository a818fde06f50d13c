"""Second moments of a site's input that is at hand as a whole: H and what errors do to it.

Panels of columns and pieces of tokens are of fixed size: results do not depend on the number of
threads, with BLAS at one thread.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

PIECE_TOKENS = 2048
PANEL = 512


def hessian(x: np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
    """H = XᵀX / N of inputs x float32 [N, n]: float32 [n, n], symmetric."""

    def left(rows: slice, panel: slice) -> np.ndarray:
        return x[rows, panel]

    h = _moments(left, x, pool, lower=True)
    for start in range(0, len(h), PANEL):
        stop = min(start + PANEL, len(h))
        square = np.tril(h[start:stop, start:stop])
        h[start:stop, start:stop] = square + np.tril(square, -1).T
        h[start:stop, stop:] = h[stop:, start:stop].T
    return h


def drift(reference: np.ndarray, x: np.ndarray, pool: ThreadPoolExecutor) -> np.ndarray:
    """C = (X_ref - X)ᵀ X / N, of inputs float32 [N, n] of the float and the quantized model."""

    def left(rows: slice, panel: slice) -> np.ndarray:
        return reference[rows, panel] - x[rows, panel]

    return _moments(left, x, pool, lower=False)


def _moments(
    left: Callable[[slice, slice], np.ndarray],
    x: np.ndarray,
    pool: ThreadPoolExecutor,
    lower: bool,
) -> np.ndarray:
    """left ᵀ X / N; with `lower` no more than the lower triangle."""
    tokens, n = x.shape
    out = np.zeros((n, n), np.float32)

    def fill(start: int) -> None:
        panel = slice(start, min(start + PANEL, n))
        target = out[panel, : panel.stop if lower else n]
        for first in range(0, tokens, PIECE_TOKENS):
            rows = slice(first, first + PIECE_TOKENS)
            target += left(rows, panel).T @ x[rows, : target.shape[1]]
        target /= np.float32(tokens)

    # The longest panels first, so that threads finish together.
    list(pool.map(fill, range(0, n, PANEL)[::-1]))
    return out
