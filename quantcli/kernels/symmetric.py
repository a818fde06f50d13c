"""Scale search for symmetric types: w ~ scale * code, codes -nmax..nmax-1, scale of either sign.

The search over candidate roundings that ggml's make_qx_quants does, on moments instead of codes
and for all sub-blocks of a tile at once. The value of largest magnitude maps to -nmax.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quantcli.kernels import scratch
from quantcli.kernels.rounding import (
    as_bits,
    clip,
    nearest,
    reciprocal,
    select,
    signed_extreme,
    to_half,
    to_half_scale,
)
from quantcli.kernels.search import TINY, best_of, total, total_of_products


class SymmetricGrid(NamedTuple):
    """w ~ (d * scales) * code; d f32[R] are fp16 values, scales f32[S, R] signed integers."""

    d: np.ndarray
    scales: np.ndarray

    @property
    def step(self) -> np.ndarray:
        return self.d * self.scales


class _Weighted:
    """x with its weights, and the codes that are measured on it."""

    def __init__(self, x: np.ndarray, weights: np.ndarray | None, nmax: int) -> None:
        self.x, self.weights, self.nmax = x, weights, nmax
        self.wx = x
        if weights is not None:
            self.wx = np.multiply(x, weights, out=scratch.empty(x.shape))
        self.codes = scratch.empty(x.shape)

    def moments(self, inverse: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Sums of w t t and w x t of the codes t = x * inverse, rounded: out f32[2, S, R]."""
        t = nearest(self.x, inverse, None, -self.nmax, self.nmax - 1, out=self.codes)
        weights = () if self.weights is None else (self.weights,)
        total_of_products(t, t, *weights, out=out[0])
        total_of_products(t, self.wx, out=out[1])
        return out


def search(data: _Weighted, deltas: Sequence[float]) -> np.ndarray:
    """The best scale of each sub-block, f32[S, R]; delta: the extreme maps to -(nmax + delta)."""
    inverse = -reciprocal(signed_extreme(data.x))
    moments = scratch.empty((2, len(deltas), *inverse.shape))
    for i, delta in enumerate(deltas):
        data.moments(inverse * np.float32(data.nmax + delta), out=moments[:, i])
    sll, slx = moments
    scale = np.divide(slx, np.maximum(sll, TINY, out=sll), out=sll)
    slx *= scale
    return best_of(slx, scale)[0]


def fit_super_blocks(
    x: np.ndarray,
    weights: np.ndarray | None,
    nmax: int,
    nscale: int,
    deltas: Sequence[float],
    passes: int,
) -> SymmetricGrid:
    """Grid of the K types: x f32[n, S, R]; integer scales -nscale..nscale-1.

    passes: how often, with the codes of the weights held fixed, integers and d are fitted in turn.
    """
    data = _Weighted(x, weights, nmax)
    scale = search(data, deltas)
    d = to_half_scale(signed_extreme(scale) / np.float32(-nscale))
    scales = _integers(scale, d, nscale)
    moments = scratch.empty((2, *scale.shape))
    for _ in range(passes):
        sll, slx = data.moments(reciprocal(d * scales), out=moments)
        scales = _integers(slx / np.maximum(sll, TINY), d, nscale)
        p, q = total(scales * slx), total_of_products(scales, scales, sll)
        new = to_half(p / np.maximum(q, TINY))
        better = as_bits(new * (2 * p - new * q) > d * (2 * p - d * q))
        d = select(better, new, d)
    return SymmetricGrid(d, scales)


def _integers(scale: np.ndarray, d: np.ndarray, nscale: int) -> np.ndarray:
    scales = scale * reciprocal(d)
    np.rint(scales, out=scales)
    return clip(scales, np.float32(-nscale), np.float32(nscale - 1), out=scales)


def fit_blocks(
    x: np.ndarray, weights: np.ndarray | None, nmax: int, deltas: Sequence[float]
) -> np.ndarray:
    """fp16 scale of blocks that store it themselves: x f32[n, S, R] -> f32[S, R]."""
    data = _Weighted(x, weights, nmax)
    inverse = reciprocal(search(data, deltas))
    sll, slx = data.moments(inverse, out=scratch.empty((2, *inverse.shape)))
    return to_half(slx / np.maximum(sll, TINY))
