"""How far weights that were decoded are from those that were encoded."""

from dataclasses import dataclass

import numpy as np

from quantcli.kernels.tiles import LANES, padded

# Of a pair of float32: all bits but the signs.
MAGNITUDES = np.uint64(0x7FFFFFFF7FFFFFFF)


@dataclass
class Deviation:
    """Error sums over the weights of the tiles added so far.

    Squares are summed in float32 along the rows of a tile, which keeps six digits, and in float64
    from there on.
    """

    squared_weight: float = 0.0
    squared_error: float = 0.0
    max_error: float = 0.0
    flushed: int = 0  # blocks that hold a non-zero weight but were decoded as all zeros

    def add(self, tile: np.ndarray, decoded: np.ndarray, count: int) -> None:
        """Units f32[U, 4 R] of weights and of those decoded; of their blocks `count` are real.

        The tile is overwritten.
        """
        lanes = tile.shape[1] // padded(count)
        tile, decoded = tile[:, : lanes * count], decoded[:, : lanes * count]
        self.squared_weight += _squares(tile)
        if lanes > 1:
            self.flushed += _flushed(tile, decoded)
        error = np.subtract(decoded, tile, out=tile)
        self.max_error = max(self.max_error, float(error.max()), -float(error.min()))
        self.squared_error += _squares(error)


def _flushed(tile: np.ndarray, decoded: np.ndarray) -> int:
    """How many of the blocks are zeros in `decoded` but not in `tile`, both units f32[U, 4 R]."""
    # Hardly any block begins with four zeros: only those are looked at as a whole.
    pairs = decoded[0].view(np.uint64) & MAGNITUDES
    (faint,) = np.nonzero((pairs[0::2] | pairs[1::2]) == 0)
    before, after = (
        units.reshape(len(units), -1, LANES)[:, faint].any(axis=(0, 2)) for units in (tile, decoded)
    )
    return int((before & ~after).sum())


def _squares(rows: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        found = np.vecdot(rows, rows)
    if not np.isfinite(found).all():  # factors of rope may be 1e30
        found = np.square(rows, dtype=np.float64)
    return float(found.sum(dtype=np.float64))
