"""What the scale searches share: moments of candidate codes, and picking the best candidate.

A candidate is judged by moments alone: with codes t, weights w and values x, the sums of w t,
w t t and w x t give the best scale, the best minimum and the remaining error in closed form.
"""

import numpy as np

from quantcli.kernels.rounding import reciprocal, select, signed_extreme, to_half_scale

TINY = np.float32(1e-30)  # keeps a quotient finite where its numerator is zero


def total(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Sum over axis 0, block by block: unlike a matrix product it never depends on the others."""
    return np.add.reduce(x, axis=0, out=out)


def best_of(gain: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """For each block the values of its candidate (axis 0) of largest gain, the first of equals."""
    best = gain[0]
    chosen = [value[0] for value in values]
    for i in range(1, len(gain)):
        better = gain[i] > best
        best = np.maximum(best, gain[i])
        chosen = [select(better, value[i], kept) for kept, value in zip(chosen, values, strict=True)]
    return chosen


def super_scale(values: np.ndarray, weights: np.ndarray, top: int) -> np.ndarray:
    """fp16 d[R] whose integer multiples, to +-top, come nearest to values [S, R], weighted [S, R].

    Tries d = extreme / (top to 0.92 top): what there is to win is how well the smaller values fall
    on integers. A negative top maps the extreme to a negative integer.
    """
    tops = np.array([[top * (1 - i / 64)] for i in range(6)], np.float32)
    d = to_half_scale(signed_extreme(values) / tops)
    error = values * reciprocal(d)[:, None]
    np.rint(error, out=error)
    np.clip(error, -abs(top), abs(top), out=error)
    error *= d[:, None]
    error -= values
    error *= error
    error *= weights
    return best_of(-np.add.reduce(error, axis=1), d)[0]
