"""Between rows of weights and tiles x[n, S, R], the layout in which all blocks advance together."""

from collections.abc import Iterator

import numpy as np

# Per tile: half a megabyte per array hides the cost of a numpy call and stays near the cache.
TILE_WEIGHTS = 1 << 17
LANES = 8  # R is padded to a multiple of this


def padded(count: int) -> int:
    """Smallest legal R that holds `count` blocks."""
    return -(-count // LANES) * LANES


def spans(n_blocks: int, blocks_per_row: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Split n_blocks into runs (start, stop) of about TILE_WEIGHTS weights, of whole rows if short.

    Whole rows let all tiles of a matrix share one tile of importances.
    """
    length = max(TILE_WEIGHTS // block_size, LANES)
    if blocks_per_row <= length:
        length -= length % blocks_per_row
    for start in range(0, n_blocks, length):
        yield start, min(start + length, n_blocks)


def load(blocks: np.ndarray, sub_blocks: int) -> np.ndarray:
    """f32[count, block_size] -> f32[n, S, R], R = padded(count); blocks that pad are zero.

    Transposing units of four weights first and their lanes second is twice as fast as one
    transposition of single weights.
    """
    count, size = blocks.shape
    n, r = size // sub_blocks, padded(count)
    if n % 4:
        tile = np.zeros((n, sub_blocks, r), np.float32)
        tile[:, :, :count] = blocks.reshape(count, sub_blocks, n).transpose(2, 1, 0)
        return tile
    units = np.empty((size // 4, r), np.complex128)
    units[:, :count] = np.ascontiguousarray(blocks).view(np.complex128).T
    units[:, count:] = 0
    lanes = units.view(np.float32).reshape(sub_blocks, n // 4, r, 4)
    return np.ascontiguousarray(lanes.transpose(1, 3, 0, 2)).reshape(n, sub_blocks, r)


def store(tile: np.ndarray, out: np.ndarray) -> None:
    """f32[n, S, R] -> out f32[count, block_size] (contiguous), the inverse of load."""
    n, sub_blocks, r = tile.shape
    count = len(out)
    if n % 4:
        out.reshape(count, sub_blocks, n)[...] = tile[:, :, :count].transpose(2, 1, 0)
        return
    lanes = np.empty((sub_blocks, n // 4, r, 4), np.float32)
    lanes[...] = tile.reshape(n // 4, 4, sub_blocks, r).transpose(2, 0, 3, 1)
    units = lanes.view(np.complex128).reshape(n * sub_blocks // 4, r)
    out.view(np.complex128)[...] = units[:, :count].T


class ImportanceTiles:
    """Tiles of an importance row that all rows of a matrix share; equal tiles are built once."""

    def __init__(self, row: np.ndarray, block_size: int, sub_blocks: int) -> None:
        self._blocks = row.reshape(-1, block_size)
        self._sub_blocks = sub_blocks
        self._last: tuple[tuple[int, int], np.ndarray] | None = None

    def tile(self, start: int, stop: int) -> np.ndarray:
        """Weights f32[n, S, R] of the blocks start..stop of the matrix, counted across its rows."""
        key = (start % len(self._blocks), padded(stop - start))
        if self._last is None or self._last[0] != key:
            which = np.arange(key[0], key[0] + key[1]) % len(self._blocks)
            self._last = key, load(self._blocks[which], self._sub_blocks)
        return self._last[1]


def normalized_importance(row: np.ndarray) -> np.ndarray | None:
    """Importance f32[n] over its mean, floored at 1e-6 so that no weight is free; None if all zero.

    The scale is a constant of the row: no result depends on how the matrix is cut into tiles.
    """
    mean = float(np.mean(row, dtype=np.float64))
    if mean == 0:
        return None
    return np.maximum(row.astype(np.float64) / mean, 1e-6).astype(np.float32)
