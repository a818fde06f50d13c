"""The GPTQ sweep: columns are rounded one after the other, later ones make up for the errors.

Left-looking: what earlier columns ask of a column is added when its turn comes, by one matrix
product per BLOCK of columns, one per RUN inside, one matrix-vector product per column.
"""

import numpy as np

from quantcli.kernels.lattice import Lattice
from quantcli.kernels.rounding import reciprocal
from quantcli.kernels.turns import TURN

BLOCK = 256
RUN = 32


def sweep(x: np.ndarray, u: np.ndarray, order: np.ndarray, lattice: Lattice) -> np.ndarray:
    """Levels i8[n, rows] for the targets x f32[n, rows], by algorithm 1 of arXiv 2210.17323.

    order: columns in the order in which they are rounded, which is that of u f32[n, n], upper
    triangular with inverse(H[order][:, order]) = UᵀU. Scales stay as they are, so any order does.
    x becomes the errors E in this order: the loss tr(D H Dᵀ) is the sum of their squares.
    """
    x[:] = x[order]
    levels = np.empty(x.shape, np.int8)
    rounder = _Rounder(lattice, x.shape[1])
    for start in range(0, len(x), BLOCK):
        stop = min(start + BLOCK, len(x))
        _subtract(x, u, 0, start, stop)
        with TURN:
            _round_block(x, u, order, slice(start, stop), rounder, levels)
    return levels


def _round_block(
    x: np.ndarray,
    u: np.ndarray,
    order: np.ndarray,
    block: slice,
    rounder: "_Rounder",
    levels: np.ndarray,
) -> None:
    """The columns of a block, whose targets know of all errors before it."""
    for first in range(block.start, block.stop, RUN):
        last = min(first + RUN, block.stop)
        _subtract(x, u, block.start, first, last)
        weights = np.ascontiguousarray(u[first:last, first:last].T)
        for k in range(first, last):
            if k > first:
                x[k] -= weights[k - first, : k - first] @ x[first:k]
            rounder.round(x[k], order[k], levels[order[k]])
            x[k] *= np.float32(1) / u[k, k]


def _subtract(x: np.ndarray, u: np.ndarray, begin: int, start: int, stop: int) -> None:
    """Move the targets start..stop by the errors begin..start."""
    if begin < start:
        x[start:stop] -= u[begin:start, start:stop].T @ x[begin:start]


class _Rounder:
    """Rounds one column of all rows."""

    def __init__(self, lattice: Lattice, rows: int) -> None:
        self._nearest, self._size = lattice.rounding.nearest, lattice.sub_block_size
        self._step, self._offset = lattice.step, lattice.offset
        self._inverse = reciprocal(self._step)
        self._level, self._shifted = np.empty((2, rows), np.float32)

    def round(self, w: np.ndarray, column: int, out: np.ndarray) -> None:
        """out i8[rows] = the levels nearest to w f32[rows], which becomes the error."""
        place = column // self._size
        shifted, level = w, self._level
        if self._offset is not None:
            shifted = np.add(w, self._offset[place], out=self._shifted)
        self._nearest(shifted, self._inverse[place], out=level)
        np.copyto(out, level, casting="unsafe")
        level *= self._step[place]
        np.subtract(shifted, level, out=w)
