"""What the scale searches share: moments of candidate codes, and picking the best candidate.

A candidate is judged by moments alone: with codes t, weights w and values x, the sums of w t,
w t t and w x t give the best scale, the best minimum and the remaining error in closed form.
"""

from collections.abc import Sequence

import numpy as np

from quantcli.kernels.rounding import select

Arrays = Sequence[np.ndarray] | np.ndarray

ZERO, ONE = np.float32(0), np.float32(1)
MOST_GAIN = np.float32(1.5)  # a block that fits so badly that more would be needed is noise
TINY = np.float32(1e-30)  # keeps a quotient finite where its numerator is zero
HUGE = np.finfo(np.float32).max


def total(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Sum over axis 0, block by block: unlike a matrix product it never depends on the others."""
    return np.add.reduce(x, axis=0, out=out)


def gain_for(power: np.ndarray, agreement: np.ndarray) -> np.ndarray:
    """By how much to stretch a fitted grid so that rounding to it keeps the weights' strength.

    The best fit in the sense of least squares is shorter than what it stands for: of x it keeps
    <x, x'> / <x, x>. Every layer of a model would answer that much too faintly, all in the same
    direction, which costs more in its predictions than the slightly larger error of x' times
    <x, x> / <x, x'> does. power: sum w x x, agreement: sum w x x', both f32[R].
    """
    gain = power / np.maximum(agreement, TINY)
    return np.clip(gain, ONE, MOST_GAIN)


def total_of_products(*factors: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """total of the product of two or three arrays, to the bit, in one pass over them."""
    return np.einsum(",".join(["i..."] * len(factors)) + "->...", *factors, out=out)


def best_of(gains: Arrays, *values: Arrays) -> list[np.ndarray]:
    """For each block the values of its candidate of largest gain, the first of equals.

    gains and values hold one array per candidate: f32[S, R] and f32[..., S, R].
    """
    best = gains[0]
    chosen = [value[0] for value in values]
    for i in range(1, len(gains)):
        better = (best - gains[i]).view(np.int32)
        better >>= np.int32(31)  # all ones where negative
        best = np.maximum(best, gains[i])
        chosen = [
            select(better, value[i], kept) for kept, value in zip(chosen, values, strict=True)
        ]
    return chosen
