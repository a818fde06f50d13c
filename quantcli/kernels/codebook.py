"""Rounding to the nearest value of a fixed table instead of to integers."""

import numpy as np

from quantcli.kernels import scratch
from quantcli.kernels.rounding import clip


class Codebook:
    """Ascending integers; halves between two of them round up, as ggml's best_index_int8.

    All midpoints are multiples of one half, so the half-open interval [k / 2, (k + 1) / 2) that a
    number lies in decides its neighbour.
    """

    def __init__(self, *values: int) -> None:
        self.values = np.array(values, np.float32)
        self.lowest = float(values[0])
        doubled = np.arange(2 * values[0], 2 * values[-1] + 1)
        middles = np.add(values[1:], values[:-1])
        self._index = np.zeros(256, np.uint8)
        self._index[np.array(values, np.int8).view(np.uint8)] = np.arange(len(values))
        self._codes = np.searchsorted(middles, doubled, side="right").astype(np.uint8)

    def nearest(self, x: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> np.ndarray:
        """The values nearest to x * inverse."""
        with scratch.frame():
            return np.take(self.values, self.codes(x, inverse), out=out, mode="clip")

    def codes(self, x: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        """The indices u8 of the values nearest to x * inverse."""
        codes = scratch.empty(x.shape, np.uint8)
        low, high = np.float32(2 * self.values[0]), np.float32(2 * self.values[-1])
        with scratch.frame():
            doubled = np.multiply(x, inverse + inverse, out=scratch.empty(x.shape))
            np.floor(doubled, out=doubled)
            clip(doubled, low, high, out=doubled)
            doubled -= low
            index = scratch.empty(x.shape, np.intp)
            np.copyto(index, doubled, casting="unsafe")
            return np.take(self._codes, index, out=codes, mode="clip")

    def codes_of(self, levels: np.ndarray) -> np.ndarray:
        """The indices u8 of levels i8, values of the table."""
        return np.take(self._index, levels.view(np.uint8))
