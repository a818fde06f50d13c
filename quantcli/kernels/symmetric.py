"""Scale search for symmetric types: w ~ scale * code, scale of either sign.

The search over candidate roundings that ggml's make_qx_quants does, on moments instead of codes
and for all sub-blocks of a tile at once. The value of largest magnitude maps to the
lowest code, of which there is one more than of the highest.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from quantcli.kernels import scratch
from quantcli.kernels.rounding import (
    F16_MAX,
    as_bits,
    clip,
    nearest,
    reciprocal,
    select,
    signed_extreme,
    to_half,
    to_half_scale,
)
from quantcli.kernels.search import ONE, TINY, best_of, gain_for, total, total_of_products

BOTH = np.array([[[0]], [[1]]], np.float32)


class SymmetricGrid(NamedTuple):
    """w ~ (d * scales) * code; d f32[R] are fp16 values, scales f32[S, R] signed integers."""

    d: np.ndarray
    scales: np.ndarray
    gain: np.ndarray | np.float32 = ONE

    @property
    def step(self) -> np.ndarray:
        return self.d * self.scales


class Rounding(Protocol):
    """The codes of a type as numbers, its levels: `lowest`, and those nearest to x * inverse.

    codes_of turns levels i8 into the codes u8 that are stored.
    """

    lowest: float

    def nearest(self, x: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> np.ndarray: ...

    def codes_of(self, levels: np.ndarray) -> np.ndarray: ...


class Integers:
    """lowest..highest, stored as their distance from the lowest."""

    def __init__(self, lowest: int, highest: int) -> None:
        self.lowest, self.highest = float(lowest), highest

    def nearest(self, x: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> np.ndarray:
        return nearest(x, inverse, None, int(self.lowest), self.highest, out=out)

    def codes_of(self, levels: np.ndarray) -> np.ndarray:
        return (levels - np.int8(self.lowest)).view(np.uint8)


class _Weighted:
    """x with its weights, and the codes that are measured on it."""

    def __init__(self, x: np.ndarray, weights: np.ndarray | None, rounding: Rounding) -> None:
        self.x, self.weights, self.rounding = x, weights, rounding
        self.wx = x
        if weights is not None:
            self.wx = np.multiply(x, weights, out=scratch.empty(x.shape))
        self.codes = scratch.empty(x.shape)

    def power(self) -> np.ndarray:
        """Sums of w x x: f32[S, R]."""
        return total_of_products(self.x, self.wx)

    def moments(self, inverse: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Sums of w t t and w x t of the codes t nearest to x * inverse: out f32[2, S, R]."""
        t = self.rounding.nearest(self.x, inverse, out=self.codes)
        weights = () if self.weights is None else (self.weights,)
        total_of_products(t, t, *weights, out=out[0])
        total_of_products(t, self.wx, out=out[1])
        return out


def search(data: _Weighted, deltas: Sequence[float]) -> np.ndarray:
    """The best scale of each sub-block, f32[S, R]; delta: the extreme maps to lowest - delta."""
    inverse = reciprocal(signed_extreme(data.x))
    moments = scratch.empty((2, len(deltas), *inverse.shape))
    for i, delta in enumerate(deltas):
        data.moments(inverse * np.float32(data.rounding.lowest - delta), out=moments[:, i])
    sll, slx = moments
    scale = np.divide(slx, np.maximum(sll, TINY, out=sll), out=sll)
    slx *= scale
    return best_of(slx, scale)[0]


def fit_super_blocks(
    x: np.ndarray,
    weights: np.ndarray | None,
    rounding: Rounding,
    nscale: int,
    deltas: Sequence[float],
) -> SymmetricGrid:
    """Grid of the K types: x f32[n, S, R]; integer scales -nscale..nscale-1.

    Both integers around each wanted scale are tried by rounding the weights: which one is better
    is not a matter of distance where the integers are small (a neighbour holds an outlier). Then,
    with the codes held fixed, integers and d are fitted in turn.
    """
    data = _Weighted(x, weights, rounding)
    lo, hi = np.float32(-nscale), np.float32(nscale - 1)
    scale = search(data, deltas)
    d = to_half_scale(signed_extreme(scale) / lo)
    scales = np.floor(scale * reciprocal(d)) + BOTH
    clip(scales, lo, hi, out=scales)
    step = d * scales
    moments = scratch.empty((2, 2, *scale.shape))
    for i in range(2):
        data.moments(reciprocal(step[i]), out=moments[i])
    gains = step * (2 * moments[:, 1] - step * moments[:, 0])
    sll, slx = best_of(gains, moments)[0]
    wanted = slx / np.maximum(sll, TINY)
    for _ in range(2):
        scales = np.rint(wanted * reciprocal(d))
        clip(scales, lo, hi, out=scales)
        p, q = total(scales * slx), total_of_products(scales, scales, sll)
        new = to_half(p / np.maximum(q, TINY))
        better = as_bits(new * (2 * p - new * q) > d * (2 * p - d * q))
        d = select(better, new, d)
    gain = gain_for(total(data.power()), total(d * scales * slx))
    stored = to_half(clip(d * gain, -F16_MAX, F16_MAX))
    return SymmetricGrid(stored, scales, gain)


def fit_blocks(
    x: np.ndarray, weights: np.ndarray | None, rounding: Rounding, deltas: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Scale of blocks that store it themselves, and the gain to store it with.

    x f32[n, S, R] -> f32[S, R] each.
    """
    data = _Weighted(x, weights, rounding)
    inverse = reciprocal(search(data, deltas))
    sll, slx = data.moments(inverse, out=scratch.empty((2, *inverse.shape)))
    d = slx / np.maximum(sll, TINY)
    return d, gain_for(data.power(), d * slx)
