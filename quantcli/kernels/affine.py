"""Scale search for affine types: w ~ scale * code + minimum, codes 0..nmax.

The weighted least-squares search over candidate roundings that ggml's make_qkx2_quants and
make_qkx3_quants do, on moments instead of codes and for all sub-blocks of a tile at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from quantcli.kernels import scratch
from quantcli.kernels.rounding import (
    F16_MAX,
    as_bits,
    clip,
    nearest,
    reciprocal,
    select,
    small_up,
    to_half,
    to_half_scale,
)
from quantcli.kernels.search import (
    HUGE,
    ONE,
    TINY,
    ZERO,
    best_of,
    gain_for,
    total,
    total_of_products,
)

# A candidate (delta, offset) rounds (x - min) / (max - min) * (nmax + delta) + offset.
Candidates = Sequence[tuple[float, float]]

SAFE = 0.49  # what is beyond the outermost codes by less than this is rounded to them
CHANGES = np.array([[[0]], [[-1]], [[1]]], np.float32)


class AffineGrid(NamedTuple):
    """w ~ (d * scales) * code - (dmin * mins); d, dmin f32[R] fp16 values, integers f32[S, R].

    Weights are rounded to the nearest value of the grid before it was stretched by gain f32[R].
    """

    d: np.ndarray
    dmin: np.ndarray
    scales: np.ndarray
    mins: np.ndarray
    gain: np.ndarray | np.float32 = ONE

    @property
    def step(self) -> np.ndarray:
        return self.d * self.scales

    @property
    def offset(self) -> np.ndarray:
        return self.dmin * self.mins


class _Shifted:
    """y = x - low with its weights, and the codes that are measured on it."""

    def __init__(self, x: np.ndarray, weights: np.ndarray | None, low: np.ndarray) -> None:
        self.low = low
        self.weights = weights
        self.y = self.wy = np.subtract(x, low, out=scratch.empty(x.shape))
        self.sw = np.full(x.shape[1:], len(x), np.float32)
        if weights is not None:
            self.wy = np.multiply(self.y, weights, out=scratch.empty(x.shape))
            total(weights, out=self.sw)
        self.sy = total(self.wy)
        self.sx = self.sy + low * self.sw
        self.codes = scratch.empty(x.shape)

    def power(self) -> np.ndarray:
        """Sums of w x x: f32[S, R]."""
        return total_of_products(self.y, self.wy) + self.low * (self.sy + self.sx)

    def moments(self, out: np.ndarray) -> np.ndarray:
        """Sums of w t, w t t and w y t of the codes t in self.codes: out f32[3, S, R]."""
        t, w = self.codes, self.weights
        if w is None:
            total(t, out=out[0])
            total_of_products(t, t, out=out[1])
        else:
            total_of_products(t, w, out=out[0])
            total_of_products(t, t, w, out=out[1])
        total_of_products(t, self.wy, out=out[2])
        return out


def search(
    data: _Shifted, nmax: int, candidates: Candidates, min_cost: float, max_min: float
) -> tuple[np.ndarray, np.ndarray]:
    """The best (scale, minimum) of each sub-block, scale >= 0, minimum <= max_min, and its moments.

    f32[2, S, R] and f32[3, S, R]. min_cost * sum(w) * minimum**2 is subtracted from the gain of a
    candidate.
    """
    inverse = reciprocal(np.maximum.reduce(data.y, axis=0))
    moments = scratch.empty((3, len(candidates), *inverse.shape))
    for i, (delta, offset) in enumerate(candidates):
        np.multiply(data.y, inverse * np.float32(nmax + delta), out=data.codes)
        if offset:
            data.codes += np.float32(offset)
        np.rint(data.codes, out=data.codes)
        if offset < -SAFE or delta + offset > SAFE:
            clip(data.codes, ZERO, np.float32(nmax), out=data.codes)
        data.moments(out=moments[:, i])
    solved = _solve(data, moments, np.float32(max_min) - data.low)
    gain = _gain(data, moments, *solved)
    solved[1] += data.low
    if min_cost:
        cost = solved[1] * solved[1]
        cost *= data.sw * np.float32(min_cost)
        gain -= cost
    best, kept = best_of(gain, solved.swapaxes(0, 1), moments.swapaxes(0, 1))
    return best, kept


def _solve(data: _Shifted, moments: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Least squares y ~ a t + b: b first, up to limit, then the best a >= 0 for that b: (a, b)."""
    sl, sll, sly = moments
    a, b = solved = scratch.empty((2, *sl.shape))
    det = scratch.empty(sl.shape)
    np.multiply(sll, data.sw, out=a)
    np.multiply(sl, sl, out=b)
    np.subtract(a, b, out=det)
    a *= np.float32(1e-6)
    a += TINY
    np.maximum(det, a, out=det)
    np.multiply(sll, data.sy, out=b)
    b -= np.multiply(sl, sly, out=a)
    b /= det
    np.minimum(b, limit, out=b)
    np.subtract(sly, np.multiply(b, sl, out=a), out=a)
    a /= np.add(sll, TINY, out=det)
    clip(a, ZERO, HUGE, out=a)
    return solved


def _gain(data: _Shifted, moments: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What a t + b takes from the sum of w y y, where a is the best for b (or 0, if negative)."""
    gain, other = scratch.empty((2, *a.shape))
    np.multiply(a, a, out=gain)
    gain *= moments[1]
    np.multiply(b, data.sw, out=other)
    np.subtract(np.float32(2) * data.sy, other, out=other)
    other *= b
    gain += other
    return gain


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
    the expected rounding error of the mins counts against a candidate. passes: how often to look
    for better integers, at first for the codes that were best for each sub-block, then for those
    on the grid of the pass before.
    """
    data = _Shifted(x, weights, np.minimum(np.minimum.reduce(x, axis=0), ZERO))
    min_cost = 0.3 * x.shape[1] / (12 * nscale**2)
    (scale, minimum), moments = search(data, nmax, candidates, min_cost, max_min=0.0)
    moments[2] += data.low * moments[0]  # of x from here on
    d = to_half_scale(np.maximum.reduce(scale, axis=0) / np.float32(nscale))
    dmin = to_half_scale(np.minimum.reduce(minimum, axis=0) / np.float32(-nscale))
    scales = small_up(scale * reciprocal(d), 0, nscale)
    mins = _best_mins(data, d * scales, dmin, moments, nscale)[1]
    grid = _super_scales(data, AffineGrid(d, dmin, scales, mins), moments)
    for again in range(passes):
        if again:
            _measure(data, grid, nmax, out=moments)
        changed = clip(grid.scales + CHANGES, ZERO, np.float32(nscale))
        gains, mins = _best_mins(data, grid.d * changed, grid.dmin, moments, nscale)
        scales, mins = best_of(gains, changed, mins)
        grid = _super_scales(data, grid._replace(scales=scales, mins=mins), moments)
    agreement = total(grid.step * moments[2] - grid.offset * data.sx)
    return _stretched(grid, gain_for(total(data.power()), agreement))


def _stretched(grid: AffineGrid, gain: np.ndarray) -> AffineGrid:
    d, dmin = (to_half(np.minimum(scale * gain, F16_MAX)) for scale in (grid.d, grid.dmin))
    return AffineGrid(d, dmin, grid.scales, grid.mins, gain)


def _measure(data: _Shifted, grid: AffineGrid, nmax: int, out: np.ndarray) -> None:
    """Sums of w t, w t t and w x t of the codes on that grid: out f32[3, S, R]."""
    nearest(data.y, reciprocal(grid.step), grid.offset + data.low, 0, nmax, out=data.codes)
    data.moments(out=out)
    out[2] += data.low * out[0]


def _best_mins(
    data: _Shifted, step: np.ndarray, dmin: np.ndarray, moments: np.ndarray, nscale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and steps f32[k, S, R] held fixed: the gains that are possible, and the mins for it."""
    sl, sll, slx = moments
    rest = step * sl
    rest -= data.sx
    mins = rest * (reciprocal(dmin) / data.sw)
    np.rint(mins, out=mins)
    clip(mins, ZERO, np.float32(nscale), out=mins)
    m = mins * dmin
    rest += rest
    rest -= m * data.sw
    rest *= m
    gain = step * sll
    np.subtract(slx + slx, gain, out=gain)
    gain *= step
    gain += rest
    return gain, mins


def _super_scales(data: _Shifted, grid: AffineGrid, moments: np.ndarray) -> AffineGrid:
    """The best (d, dmin) for these codes, scales and mins."""
    # Least squares: d aa - dmin ab = p, d ab - dmin bb = q; dmin first, limited and rounded.
    (sl, sll, slx), scales, mins = moments, grid.scales, grid.mins
    p, q = total(scales * slx), total(mins * data.sx)
    aa = total_of_products(scales, scales, sll)
    ab = total_of_products(scales, mins, sl)
    bb = total_of_products(mins, mins, data.sw)
    det = np.maximum(aa * bb - ab * ab, np.float32(1e-6) * aa * bb + TINY)
    dmin = to_half(np.maximum((p * ab - q * aa) / det, ZERO))
    d = to_half(np.maximum((p + dmin * ab) / np.maximum(aa, TINY), ZERO))

    def gain_of(d: np.ndarray, dmin: np.ndarray) -> np.ndarray:
        return d * (2 * p - d * aa + 2 * dmin * ab) - dmin * (2 * q + dmin * bb)

    better = as_bits(gain_of(d, dmin) > gain_of(grid.d, grid.dmin))
    return AffineGrid(select(better, d, grid.d), select(better, dmin, grid.dmin), scales, mins)


def fit_blocks(
    x: np.ndarray, weights: np.ndarray | None, nmax: int, candidates: Candidates
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale and minimum of blocks that store both themselves, and the gain to store them with.

    x f32[n, S, R] -> f32[S, R] each.
    """
    data = _Shifted(x, weights, np.minimum.reduce(x, axis=0))
    scale, minimum = search(data, nmax, candidates, 0.0, max_min=np.inf)[0]
    m = to_half(minimum)
    nearest(data.y, reciprocal(scale), data.low - m, 0, nmax, out=data.codes)
    sl, sll, sly = data.moments(out=scratch.empty((3, *scale.shape)))
    slx = sly + data.low * sl
    d = np.maximum((slx - m * sl) / np.maximum(sll, TINY), ZERO)
    return d, m, gain_for(data.power(), d * slx + m * data.sx)
