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
    clip,
    nearest,
    reciprocal,
    signed_extreme,
    small_up,
    to_half,
    to_half_scale,
)
from quantcli.kernels.search import ONE, TINY, best_of, gain_for, total, total_of_products

SUPER_DELTAS = (-1.0, 0.0)
SAFELY_BELOW = 0.51  # a bound that is this much below a code rounds to it at most


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

    largest: a bound of |x * inverse|, if one is known. codes_of turns levels i8 into the codes u8
    that are stored.
    """

    lowest: float

    def nearest(
        self, x: np.ndarray, inverse: np.ndarray, out: np.ndarray, largest: float = np.inf
    ) -> np.ndarray: ...

    def codes_of(self, levels: np.ndarray) -> np.ndarray: ...


class Integers:
    """lowest..highest, stored as their distance from the lowest."""

    def __init__(self, lowest: int, highest: int) -> None:
        self.lowest, self.highest = float(lowest), highest

    def nearest(
        self, x: np.ndarray, inverse: np.ndarray, out: np.ndarray, largest: float = np.inf
    ) -> np.ndarray:
        if largest > self.highest + 1 - SAFELY_BELOW:
            return nearest(x, inverse, None, int(self.lowest), self.highest, out=out)
        np.multiply(x, inverse, out=out)
        return np.rint(out, out=out)

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

    def moments(self, inverse: np.ndarray, out: np.ndarray, largest: float = np.inf) -> np.ndarray:
        """Sums of w t t and w x t of the codes t nearest to x * inverse: out f32[2, S, R]."""
        t = self.rounding.nearest(self.x, inverse, self.codes, largest)
        weights = () if self.weights is None else (self.weights,)
        total_of_products(t, t, *weights, out=out[0])
        total_of_products(t, self.wx, out=out[1])
        return out


def search(data: _Weighted, deltas: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The best scale of each sub-block and the sum of w t t of its codes, f32[S, R] each.

    delta: the extreme maps to lowest - delta.
    """
    inverse = reciprocal(signed_extreme(data.x))
    moments = scratch.empty((2, len(deltas), *inverse.shape))
    for i, delta in enumerate(deltas):
        code = data.rounding.lowest - delta
        data.moments(inverse * np.float32(code), moments[:, i], largest=abs(code))
    sll, slx = moments
    sll += TINY
    scale = slx / sll
    slx *= scale
    best, kept = best_of(slx, scale, sll)
    return best, kept


def fit_super_blocks(
    x: np.ndarray,
    weights: np.ndarray | None,
    rounding: Rounding,
    nscale: int,
    deltas: Sequence[float],
) -> SymmetricGrid:
    """Grid of the K types: x f32[n, S, R]; integer scales -nscale..nscale-1.

    The scales of a super-block are fitted like weights, their errors counting by the sums of
    squares of the codes that were best for each sub-block.
    """
    data = _Weighted(x, weights, rounding)
    scale, sll = search(data, deltas)
    whole = _Weighted(scale[:, None], sll[:, None], Integers(-nscale, nscale - 1))
    d = to_half_scale(search(whole, SUPER_DELTAS)[0][0])
    scales = small_up(scale * reciprocal(d), -nscale, nscale - 1)
    slx = scales * sll
    q = total_of_products(slx, scales)
    slx *= scale
    p = total(slx)
    d = to_half_scale(p / np.maximum(q, TINY))
    gain = gain_for(total(data.power()), d * p)
    stored = to_half(clip(d * gain, -F16_MAX, F16_MAX))
    return SymmetricGrid(stored, scales, gain)


def fit_blocks(
    x: np.ndarray, weights: np.ndarray | None, rounding: Rounding, deltas: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Scale of blocks that store it themselves, and the gain to store it with.

    x f32[n, S, R] -> f32[S, R] each.
    """
    data = _Weighted(x, weights, rounding)
    inverse = reciprocal(search(data, deltas)[0])
    sll, slx = data.moments(inverse, out=scratch.empty((2, *inverse.shape)))
    d = slx / np.maximum(sll, TINY)
    return d, gain_for(data.power(), d * slx)
