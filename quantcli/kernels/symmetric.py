"""Scale search for symmetric types: w ~ scale * code, codes -nmax..nmax-1, scale of either sign.

The search over candidate roundings that ggml's make_qx_quants does, on moments instead of codes
and for all sub-blocks of a tile at once. The value of largest magnitude maps to -nmax.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quantcli.kernels import scratch
from quantcli.kernels.rounding import nearest, reciprocal, select, signed_extreme, to_half
from quantcli.kernels.search import TINY, best_of, super_scale, total


class SymmetricGrid(NamedTuple):
    """w ~ (d * scales) * code; d f32[R] are fp16 values, scales f32[S, R] signed integers."""

    d: np.ndarray
    scales: np.ndarray

    @property
    def step(self) -> np.ndarray:
        return self.d * self.scales


class _Weighted:
    """x with its weights, and two arrays to work in: what every candidate is measured on."""

    def __init__(self, x: np.ndarray, weights: np.ndarray | None, nmax: int) -> None:
        self.x, self.weights, self.nmax = x, weights, nmax
        self.wx = x
        if weights is not None:
            self.wx = np.multiply(x, weights, out=scratch.empty(x.shape))
        self.codes = scratch.empty(x.shape)
        self.products = scratch.empty(x.shape)

    def moments(self, inverse: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Sums of w t t and w x t of the codes t = x * inverse, rounded: f32[2, S, R]."""
        out = scratch.empty((2, *inverse.shape)) if out is None else out
        t = wt = nearest(self.x, inverse, None, -self.nmax, self.nmax - 1, out=self.codes)
        if self.weights is not None:
            wt = np.multiply(t, self.weights, out=self.products)
        total(np.multiply(wt, t, out=self.products), out=out[0])
        total(np.multiply(t, self.wx, out=self.products), out=out[1])
        return out


def search(data: _Weighted, deltas: Sequence[float]) -> np.ndarray:
    """The best scale of each sub-block, f32[S, R]; delta: the extreme maps to -(nmax + delta)."""
    inverse = -reciprocal(signed_extreme(data.x))
    moments = scratch.empty((2, len(deltas), *inverse.shape))
    for i, delta in enumerate(deltas):
        data.moments(inverse * np.float32(data.nmax + delta), out=moments[:, i])
    sll, slx = moments
    scale = slx / np.maximum(sll, TINY)
    return best_of(scale * slx, scale)[0]


def fit_super_blocks(
    x: np.ndarray, weights: np.ndarray | None, nmax: int, nscale: int, deltas: Sequence[float]
) -> SymmetricGrid:
    """Grid of the K types: x f32[n, S, R]; integer scales -nscale..nscale-1.

    Both integers around each wanted scale are tried by rounding the weights: which one is better
    is not a matter of distance where the integers are small (a neighbour holds an outlier). Then,
    with the codes held fixed, integers and d are fitted in turn.
    """
    data = _Weighted(x, weights, nmax)
    scale = search(data, deltas)
    sw = np.ones_like(scale) if weights is None else total(weights)
    d = super_scale(scale, sw, -nscale)
    lo, hi = np.float32(-nscale), np.float32(nscale - 1)
    below = np.floor(scale * reciprocal(d))
    tried = []
    for wanted in (below, below + 1):
        scales = np.clip(wanted, lo, hi)
        sll, slx = data.moments(reciprocal(d * scales))
        tried.append((d * scales * (2 * slx - d * scales * sll), sll, slx))
    sll, slx = best_of(*(np.stack(values) for values in zip(*tried, strict=True)))
    for _ in range(2):
        scales = np.clip(np.rint(slx / np.maximum(sll, TINY) * reciprocal(d)), lo, hi)
        p, q = total(scales * slx), total(scales * scales * sll)
        new = to_half(p / np.maximum(q, TINY))
        better = new * (2 * p - new * q) > d * (2 * p - d * q)
        d = select(better, new, d)
    return SymmetricGrid(d, scales)


def fit_blocks(
    x: np.ndarray, weights: np.ndarray | None, nmax: int, deltas: Sequence[float]
) -> np.ndarray:
    """fp16 scale of blocks that store it themselves: x f32[n, S, R] -> f32[S, R]."""
    data = _Weighted(x, weights, nmax)
    sll, slx = data.moments(reciprocal(search(data, deltas)))
    return to_half(slx / np.maximum(sll, TINY))
