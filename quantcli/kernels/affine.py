"""Scale search for affine types: w ~ scale * code + minimum, codes 0..nmax.

The weighted least-squares search over candidate roundings that ggml's make_qkx2_quants and
make_qkx3_quants do, on moments instead of codes and for all sub-blocks of a tile at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quantcli.kernels import scratch
from quantcli.kernels.rounding import nearest, reciprocal, select, to_half
from quantcli.kernels.search import TINY, best_of, super_scale, total

# A candidate (delta, offset) rounds (x - min) / (max - min) * (nmax + delta) + offset.
Candidates = Sequence[tuple[float, float]]


class AffineGrid(NamedTuple):
    """w ~ (d * scales) * code - (dmin * mins); d, dmin f32[R] fp16 values, integers f32[S, R]."""

    d: np.ndarray
    dmin: np.ndarray
    scales: np.ndarray
    mins: np.ndarray

    @property
    def step(self) -> np.ndarray:
        return self.d * self.scales

    @property
    def offset(self) -> np.ndarray:
        return self.dmin * self.mins


class _Shifted:
    """y = x - low with its weights, and two arrays to work in: what every candidate is measured on."""

    def __init__(self, x: np.ndarray, weights: np.ndarray | None, low: np.ndarray) -> None:
        self.low = low
        self.weights = weights
        self.y = np.subtract(x, low, out=scratch.empty(x.shape))
        self.wy = self.y
        if weights is not None:
            self.wy = np.multiply(self.y, weights, out=scratch.empty(x.shape))
        self.sw = np.full(x.shape[1:], len(x), np.float32) if weights is None else total(weights)
        self.sy = total(self.wy)
        self.sx = self.sy + low * self.sw
        self.codes = scratch.empty(x.shape)
        self.products = scratch.empty(x.shape)

    def moments(self, out: np.ndarray | None = None) -> np.ndarray:
        """Sums of w t, w t t and w y t of the codes t in self.codes: f32[3, S, R]."""
        out = scratch.empty((3, *self.sw.shape)) if out is None else out
        t, wt = self.codes, self.codes
        if self.weights is not None:
            wt = np.multiply(t, self.weights, out=self.products)
        total(wt, out=out[0])
        total(np.multiply(wt, t, out=self.products), out=out[1])
        total(np.multiply(t, self.wy, out=self.products), out=out[2])
        return out


def search(
    data: _Shifted, nmax: int, candidates: Candidates, min_cost: float, max_min: float
) -> tuple[np.ndarray, np.ndarray]:
    """The best (scale, minimum) of each sub-block, f32[S, R], scale >= 0, minimum <= max_min.

    min_cost * sum(w) * minimum**2 is subtracted from the gain of a candidate.
    """
    inverse = reciprocal(np.maximum(np.maximum.reduce(data.y, axis=0), TINY))
    moments = scratch.empty((3, len(candidates), *inverse.shape))
    for i, (delta, offset) in enumerate(candidates):
        np.multiply(data.y, inverse * np.float32(nmax + delta), out=data.codes)
        if offset:
            data.codes += np.float32(offset)
        np.rint(data.codes, out=data.codes)
        np.clip(data.codes, np.float32(0), np.float32(nmax), out=data.codes)
        data.moments(out=moments[:, i])
    (sl, sll, sly), sw, sy = moments, data.sw, data.sy
    # Minimum first (relative to low), limited; then the best scale given that minimum.
    det = np.maximum(sw * sll - sl * sl, np.float32(1e-6) * sw * sll + TINY)
    b = np.minimum((sll * sy - sl * sly) / det, np.float32(max_min) - data.low)
    a = np.maximum((sly - b * sl) / np.maximum(sll, TINY), np.float32(0))
    minimum = b + data.low
    gain = a * (2 * (sly - b * sl) - a * sll) + b * (2 * sy - b * sw)
    if min_cost:
        gain -= np.float32(min_cost) * sw * minimum * minimum
    scale, minimum = best_of(gain, a, minimum)
    return scale, minimum


def fit_super_blocks(
    x: np.ndarray,
    weights: np.ndarray | None,
    nmax: int,
    nscale: int,
    candidates: Candidates,
    passes: int,
) -> AffineGrid:
    """Grid of the K types: x f32[n, S, R]; integer scales and mins 0..nscale, minimum <= 0.

    One sub-block with an outlier minimum would coarsen the mins of its whole super-block: 0.3 of
    the expected rounding error of the mins counts against a candidate.
    """
    data = _Shifted(x, weights, np.minimum(np.minimum.reduce(x, axis=0), np.float32(0)))
    min_cost = 0.3 * x.shape[1] / (12 * nscale**2)
    scale, minimum = search(data, nmax, candidates, min_cost, max_min=0.0)
    grid, moments = _integers(data, scale, minimum, nmax, nscale)
    grid = _refine(data, grid, moments, nscale)
    for _ in range(passes - 1):
        grid = _refine(data, grid, _measure(data, grid, nmax), nscale)
    return grid


def _measure(data: _Shifted, grid: AffineGrid, nmax: int) -> np.ndarray:
    """Sums of w t, w t t and w x t of the codes on that grid: f32[3, S, R]."""
    nearest(data.y, reciprocal(grid.step), grid.offset + data.low, 0, nmax, out=data.codes)
    moments = data.moments()
    moments[2] += data.low * moments[0]
    return moments


def _best_mins(
    data: _Shifted, grid: AffineGrid, moments: np.ndarray, nscale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales held fixed: the gain that is possible, and the integer mins that give it."""
    sl, sll, slx = moments
    a = grid.step
    rest = a * sl - data.sx
    mins = np.clip(np.rint(rest * (reciprocal(grid.dmin) / data.sw)), 0, np.float32(nscale))
    m = mins * grid.dmin
    return a * (2 * slx - a * sll) + m * (2 * rest - m * data.sw), mins


def _integers(
    data: _Shifted, scale: np.ndarray, minimum: np.ndarray, nmax: int, nscale: int
) -> tuple[AffineGrid, np.ndarray]:
    """The grid of stored scales near those wanted, and its moments.

    Both integers around each wanted scale are tried by rounding the weights: which one is better
    is not a matter of distance where the integers are small (a neighbour holds an outlier).
    """
    d = super_scale(scale, data.sw, nscale)
    dmin = super_scale(-minimum, data.sw, nscale)
    mins = np.minimum(np.rint(-minimum * reciprocal(dmin)), np.float32(nscale))
    below = np.floor(scale * reciprocal(d))
    tried = []
    for scales in (below, below + 1):
        grid = AffineGrid(d, dmin, np.minimum(scales, np.float32(nscale)), mins)
        moments = _measure(data, grid, nmax)
        gain, new_mins = _best_mins(data, grid, moments, nscale)
        tried.append((gain, grid.scales, new_mins, *moments))
    scales, mins, *best = best_of(*(np.stack(values) for values in zip(*tried, strict=True)))
    return AffineGrid(d, dmin, scales, mins), np.stack(best)


def _refine(data: _Shifted, grid: AffineGrid, moments: np.ndarray, nscale: int) -> AffineGrid:
    """With the codes held fixed: better integers per sub-block, then better (d, dmin)."""
    tried = []
    for change in (0, -1, 1):
        scales = np.clip(grid.scales + np.float32(change), 0, np.float32(nscale))
        gain, mins = _best_mins(data, grid._replace(scales=scales), moments, nscale)
        tried.append((gain, scales, mins))
    scales, mins = best_of(*(np.stack(values) for values in zip(*tried, strict=True)))

    # Least squares: d aa - dmin ab = p, d ab - dmin bb = q; dmin first, limited and rounded.
    sl, sll, slx = moments
    p, q = total(scales * slx), total(mins * data.sx)
    aa, ab, bb = (
        total(scales * scales * sll),
        total(scales * mins * sl),
        total(mins * mins * data.sw),
    )
    det = np.maximum(aa * bb - ab * ab, np.float32(1e-6) * aa * bb + TINY)
    dmin = to_half(np.maximum((p * ab - q * aa) / det, np.float32(0)))
    d = to_half(np.maximum((p + dmin * ab) / np.maximum(aa, TINY), np.float32(0)))

    def gain_of(d: np.ndarray, dmin: np.ndarray) -> np.ndarray:
        return d * (2 * p - d * aa + 2 * dmin * ab) - dmin * (2 * q + dmin * bb)

    better = gain_of(d, dmin) > gain_of(grid.d, grid.dmin)
    return AffineGrid(select(better, d, grid.d), select(better, dmin, grid.dmin), scales, mins)


def fit_blocks(
    x: np.ndarray, weights: np.ndarray | None, nmax: int, candidates: Candidates
) -> tuple[np.ndarray, np.ndarray]:
    """fp16 scale and minimum of blocks that store both themselves: x f32[n, S, R] -> f32[S, R]."""
    data = _Shifted(x, weights, np.minimum.reduce(x, axis=0))
    scale, minimum = search(data, nmax, candidates, 0.0, max_min=np.inf)
    m = to_half(minimum)
    nearest(data.y, reciprocal(scale), data.low - m, 0, nmax, out=data.codes)
    sl, sll, sly = data.moments()
    d = to_half((sly + (data.low - m) * sl) / np.maximum(sll, TINY))
    return np.maximum(d, np.float32(0)), m
