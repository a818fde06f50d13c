"""Adding a product of two thin matrices, with the same bits however the rows are cut.

A matrix product of BLAS rounds differently with the number of rows, of threads and with the CPU;
here every element is the same sequence of float32 operations.
"""

import numpy as np

TILE_WEIGHTS = 1 << 15  # the sum and a term of it stay in the cache


def add_low_rank(w: np.ndarray, b: np.ndarray, a: np.ndarray, scale: float) -> None:
    """w += scale * (b @ a), in place; float32 w [m, n], b [m, r], a [r, n].

    The product is summed in the order of the rank, then scaled, then added, each in float32.
    """
    step = max(1, TILE_WEIGHTS // max(1, w.shape[1]))
    total, term = np.empty((2, min(step, len(w)), w.shape[1]), np.float32)
    for start in range(0, len(w), step):
        rows = b[start : start + step]
        delta, product = total[: len(rows)], term[: len(rows)]
        np.multiply(rows[:, :1], a[0], out=delta)
        for k in range(1, len(a)):
            np.multiply(rows[:, k : k + 1], a[k], out=product)
            delta += product
        delta *= np.float32(scale)
        w[start : start + step] += delta
