"""Coordinate descent on tr(D H Dᵀ), D = W' - W, over all that a lattice stores; it never climbs.

Groups of columns are visited in turn. The gradient of a group, D H, is one matrix product; inside
a group everything is solved with its own square of H: integer scales and mins, then d and dmin,
then levels (as QuantEase, arXiv 2309.01885, does). Arrays are [columns, rows]; the rows of a
matrix are independent of one another.
"""

import numpy as np

from quantcli.kernels.lattice import Lattice
from quantcli.kernels.rounding import F16_MAX, clip, reciprocal, to_half
from quantcli.kernels.search import TINY, best_of, total, total_of_products
from quantcli.kernels.turns import TURN

GROUP = 256  # columns; a multiple of every block size
RUN = 32
ROUNDS = 2  # in each group, per pass: they cost little, as the matrix product stays the same
STEPS = (0, -1, 1, -2, 2)  # of integer scales that have a min beside them


def descend(
    levels: np.ndarray,
    lattice: Lattice,
    target: np.ndarray,
    h: np.ndarray,
    ridge: np.ndarray,
    passes: int,
) -> None:
    """Improve levels i8[n, rows] and the scales of their lattice, in place.

    target: W f32[n, rows]; h: f32[n, n]; ridge: f32[n], which counts as added to its diagonal.
    """
    error = lattice.dequantize(levels)
    error -= target
    for _ in range(passes):
        for start in range(0, len(levels), GROUP):
            columns = slice(start, min(start + GROUP, len(levels)))
            gradient = h[columns] @ error
            gradient += ridge[columns, None] * error[columns]
            square = h[columns, columns] + np.diag(ridge[columns])
            group = _Group(levels[columns], lattice.part(columns), gradient, square)
            with TURN:
                for _ in range(ROUNDS):
                    group.fit_integers()
                    group.fit_blocks()
                    group.round()
            levels[columns] = group.levels
            error[columns] += group.moved


class _Group:
    """Some columns: their levels f32[k, rows], scales, gradient f32[k, rows] and square of H.

    moved is by how much the weights have changed, f32[k, rows].
    """

    def __init__(
        self, levels: np.ndarray, lattice: Lattice, gradient: np.ndarray, h: np.ndarray
    ) -> None:
        self.levels = levels.astype(np.float32)
        self.moved = np.zeros_like(self.levels)
        self._lattice, self._gradient, self._h = lattice, gradient, h
        self._changes = np.empty_like(self.levels)

    def fit_integers(self) -> None:
        """The best integer scale (and min) of each sub-block."""
        lattice, changes = self._lattice, self._changes
        if lattice.ranges.scales[0] == lattice.ranges.scales[1]:
            return
        n = lattice.sub_block_size
        for place in range(len(lattice.scales)):
            part = slice(place * n, place * n + n)
            q, g, h = self.levels[part], self._gradient_at(part), self._h[part, part]
            hq = h @ q
            slope, power = total_of_products(q, g), total_of_products(q, hq)
            if lattice.mins is None:
                x = _best_integer(lattice, place, slope, power)
                np.multiply(q, x, out=changes[part])
            else:
                sum_h = np.float32(h.sum(dtype=np.float64))
                x, y = _best_pair(lattice, place, slope, power, total(g), total(hq), sum_h)
                np.multiply(q, x, out=changes[part])
                changes[part] -= y
        self._move()

    def fit_blocks(self) -> None:
        """The best d (and dmin) of each block, by least squares."""
        lattice, changes, size = self._lattice, self._changes, self._lattice.block_size
        for block in range(len(lattice.d)):
            part = slice(block * size, block * size + size)
            own = lattice.part(part)
            v = self.levels[part].copy()
            _by_sub_block(v, own)[...] *= own.scales[:, None]
            g, h = self._gradient_at(part), self._h[part, part]
            hv = h @ v
            slope, power = total_of_products(v, g), total_of_products(v, hv)
            if own.mins is None:
                x = _best_scale(own.d[0], slope, power)
                np.multiply(v, x, out=changes[part])
            else:
                x, y = _best_scales(own, slope, power, g, hv, h)
                np.multiply(v, x, out=changes[part])
                _by_sub_block(changes[part], own)[...] -= (own.mins * y)[:, None]
        self._move()

    def round(self) -> None:
        """The best level of each weight, given all others."""
        step, n = self._lattice.step, self._lattice.sub_block_size
        inverse = reciprocal(step)
        best, g = np.empty((2, step.shape[1]), np.float32)
        for first in range(0, len(self.levels), RUN):
            last = min(first + RUN, len(self.levels))
            gradient = self._gradient_at(slice(first, last))
            for k in range(first, last):
                level, change, place = self.levels[k], self._changes[k], k // n
                np.copyto(g, gradient[k - first])
                if k > first:
                    g += self._h[k, first:k] @ self._changes[first:k]
                g *= np.float32(-1) / self._h[k, k]
                g += np.multiply(level, step[place], out=change)
                self._lattice.rounding.nearest(g, inverse[place], out=best)
                np.subtract(best, level, out=change)
                change *= step[place]
                np.copyto(level, best)
        self._move()

    def _gradient_at(self, part: slice) -> np.ndarray:
        """The gradient there, after the changes that were made before it."""
        g = self._gradient[part]
        if part.start == 0:
            return g
        return g + self._h[part, : part.start] @ self._changes[: part.start]

    def _move(self) -> None:
        self.moved += self._changes
        self._gradient += self._h @ self._changes


def _by_sub_block(columns: np.ndarray, lattice: Lattice) -> np.ndarray:
    """View [k, rows] as [k / n, n, rows]."""
    return columns.reshape(-1, lattice.sub_block_size, columns.shape[1])


def _best_integer(lattice: Lattice, place: int, slope: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Set one sub-block's scales, f32[rows]; returns the change of its steps x.

    The loss changes by 2 x slope + x² power: the integer nearest to its lowest point is the best.
    """
    low, high = lattice.ranges.scales
    scale, d = lattice.scales[place], lattice.d[place // lattice.sub_blocks]
    best = clip(np.rint(scale - slope * reciprocal(d * power)), np.float32(low), np.float32(high))
    x = (best - scale) * d
    scale[:] = best
    return x


def _best_pair(
    lattice: Lattice,
    place: int,
    slope: np.ndarray,
    power: np.ndarray,
    lean: np.ndarray,
    cross: np.ndarray,
    sum_h: np.float32,
) -> tuple[np.ndarray, np.ndarray]:
    """Set one sub-block's scales and mins; returns the changes of its step x and offset y.

    The loss changes by 2 x slope + x² power - 2 y lean + y² sum_h - 2 x y cross: for a few scales
    the best min each.
    """
    block = place // lattice.sub_blocks
    scale, d = lattice.scales[place], lattice.d[block]
    low, high = (np.float32(limit) for limit in lattice.ranges.scales)
    lowest, highest = (np.float32(limit) for limit in lattice.ranges.mins)
    minimum, dmin = lattice.mins[place], lattice.dmin[block]
    inverse = reciprocal(dmin * sum_h)
    # The first candidate is what there is.
    gains, scales, mins = [np.zeros_like(scale)], [scale.copy()], [minimum.copy()]
    for step in STEPS:
        scales.append(clip(scales[0] + np.float32(step), low, high))
        x = (scales[-1] - scales[0]) * d
        pull = lean + x * cross
        mins.append(clip(np.rint(mins[0] + pull * inverse), lowest, highest))
        y = (mins[-1] - mins[0]) * dmin
        gains.append(y * (2 * pull - y * sum_h) - x * (2 * slope + x * power))
    scale[:], minimum[:] = best_of(gains, scales, mins)
    return (scale - scales[0]) * d, (minimum - mins[0]) * dmin


def _best_scale(d: np.ndarray, slope: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Set d f32[rows] of one block; returns its change x, 0 where 2 x slope + x² power >= 0."""
    x = _half(d - slope / np.maximum(power, TINY)) - d
    x *= x * (2 * slope + x * power) < 0
    d += x
    return x


def _best_scales(
    own: Lattice,
    slope: np.ndarray,
    power: np.ndarray,
    gradient: np.ndarray,
    hv: np.ndarray,
    h: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Set d and dmin of one block; returns their changes x and y, 0 where the loss would not fall.

    It changes by 2 x slope + x² power - 2 y lean + y² weight - 2 x y cross.
    """
    d, dmin, m, n = own.d[0], own.dmin[0], own.mins, own.sub_block_size
    sums = h.reshape(len(m), n, len(m), n).sum(axis=(1, 3), dtype=np.float64).astype(np.float32)
    lean = total_of_products(m, _by_sub_block(gradient, own).sum(axis=1))
    cross = total_of_products(m, _by_sub_block(hv, own).sum(axis=1))
    weight = total_of_products(m, sums @ m)
    both = power * weight
    det = np.maximum(both - cross * cross, np.float32(1e-5) * both + TINY)
    x = _half(d + (cross * lean - slope * weight) / det) - d
    y = _half(dmin + (power * lean - slope * cross) / det) - dmin
    lower = x * (2 * slope + x * power - 2 * y * cross) + y * (y * weight - 2 * lean) < 0
    x *= lower
    y *= lower
    d += x
    dmin += y
    return x, y


def _half(x: np.ndarray) -> np.ndarray:
    return to_half(clip(x, np.float32(-F16_MAX), np.float32(F16_MAX)))
