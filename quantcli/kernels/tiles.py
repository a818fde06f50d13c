"""Between rows of weights and tiles, the layouts in which all blocks advance together."""

from collections.abc import Iterator

import numpy as np

from quantcli.kernels import scratch

# Per tile: two megabytes per array. In smaller ones the calls to numpy cost as much as what they
# do, and threads wait for one another: each call hands the interpreter lock over.
TILE_WEIGHTS = 1 << 19
TRANSPOSED_WEIGHTS = 1 << 17  # at a time: each cache line is read in several passes
LANES = 4  # weights that move together: 16 bytes of float32, one complex128
PAIR = np.uint64(0x1_0000_0001)  # times a float32's bits: it twice


def padded(count: int) -> int:
    """Smallest legal R that holds `count` blocks: an odd multiple of 8."""
    return (-(-count // 8) | 1) * 8


def spans(n_blocks: int, blocks_per_row: int, block_size: int) -> Iterator[tuple[int, int]]:
    """Split n_blocks into runs (start, stop) of about TILE_WEIGHTS weights, of whole rows if short.

    Whole rows let all tiles of a matrix share one tile of importances.
    """
    length = max(TILE_WEIGHTS // block_size, 8)
    if blocks_per_row <= length:
        length -= length % blocks_per_row
    for start in range(0, n_blocks, length):
        yield start, min(start + length, n_blocks)


def load(blocks: np.ndarray) -> np.ndarray:
    """f32[count, block_size] (contiguous) -> units f32[U, 4 R]; blocks that pad are zero."""
    count, size = blocks.shape
    unit, lanes = (np.complex128, LANES) if size % LANES == 0 else (np.float32, 1)
    units = scratch.empty((size // lanes, padded(count)), unit)
    by_block = blocks.view(unit)
    run = TRANSPOSED_WEIGHTS // size
    for start in range(0, count, run):
        units[:, start : min(start + run, count)] = by_block[start : start + run].T
    units[:, count:] = 0
    return units.view(np.float32)


def store(tile: np.ndarray, out: np.ndarray) -> None:
    """The inverse of load: units f32[U, 4 R] -> out f32[count, block_size] (contiguous)."""
    unit = np.complex128 if out.shape[1] % LANES == 0 else np.float32
    out.view(unit)[...] = tile.view(unit)[:, : len(out)].T


def planes(tile: np.ndarray, sub_blocks: int) -> np.ndarray:
    """units f32[U, 4 R] -> planes f32[n, S, R]."""
    per_sub_block, r = len(tile) // sub_blocks, tile.shape[1] // LANES
    out = scratch.empty((per_sub_block * LANES, sub_blocks, r))
    lanes = tile.reshape(sub_blocks, per_sub_block, r, LANES)
    out.reshape(per_sub_block, LANES, sub_blocks, r)[...] = lanes.transpose(1, 3, 0, 2)
    return out


def spread(values: np.ndarray) -> np.ndarray:
    """[..., R] -> f32[..., 4 R]: each value for the four lanes of its block."""
    out = scratch.empty((*values.shape, LANES // 2), np.uint64)
    pairs = scratch.empty(values.shape, np.uint64)
    pairs[...] = np.asarray(values, np.float32).view(np.uint32)
    pairs *= PAIR
    out[..., 0] = out[..., 1] = pairs
    return out.view(np.float32).reshape(*values.shape[:-1], -1)


def extremes(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest and the smallest weight of each block: units f32[U, 4 R] -> f32[R], twice."""
    high, low = _largest_lanes(_largest_of_both_signs(tile))
    return high, np.negative(low, out=low)


def largest_magnitudes(tile: np.ndarray) -> np.ndarray:
    """The largest |weight| of each block: units f32[U, 4 R] -> f32[R]."""
    positive, negative = _largest_of_both_signs(tile)
    return _largest_lanes(np.maximum(positive, negative, out=positive))


def _largest_of_both_signs(tile: np.ndarray) -> np.ndarray:
    """The maxima of units f32[U, 4 R] and of their negatives over axis 0: f32[2, 4 R]."""
    lanes = scratch.empty((2, tile.shape[1]))
    np.maximum.reduce(tile, axis=0, out=lanes[0])
    np.minimum.reduce(tile, axis=0, out=lanes[1])
    np.negative(lanes[1], out=lanes[1])
    return lanes


def _largest_lanes(lanes: np.ndarray) -> np.ndarray:
    """f32[..., 4 R] -> f32[..., R]: the largest of each four."""
    # Of these pairs every fourth is wanted: that is faster than taking those alone.
    pairs = np.maximum(lanes[..., :-2], lanes[..., 2:])
    return np.maximum(pairs[..., 0::LANES], pairs[..., 1::LANES])


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
            with scratch.frame():
                tile = planes(load(self._blocks[which]), self._sub_blocks)
                self._last = key, tile.copy()
        return self._last[1]


def normalized_importance(row: np.ndarray) -> np.ndarray | None:
    """Importance f32[n] over its mean, floored at 1e-6 so that no weight is free; None if all zero.

    The scale is a constant of the row: no result depends on how the matrix is cut into tiles.
    """
    mean = float(np.mean(row, dtype=np.float64))
    if mean == 0:
        return None
    return np.maximum(row.astype(np.float64) / mean, 1e-6).astype(np.float32)
