"""What codes can stand for, row by row, for methods that choose the codes of whole rows themselves.

Such methods sweep the columns of a matrix, all rows at once: arrays here are [columns, rows].
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from quantcli.kernels.rounding import reciprocal
from quantcli.kernels.symmetric import Rounding
from quantcli.kernels.tiles import LANES, load, padded

# An array; None for types without a minimum.
IfMinimum = Any


class BlockScales(NamedTuple):
    """w ~ d * scales * level - dmin * mins of R blocks: f32[R] fp16 values, integers f32[S, R].

    dmin and mins are None for types without a minimum; integers of types that have none are 1.
    """

    d: np.ndarray
    scales: np.ndarray
    dmin: IfMinimum = None
    mins: IfMinimum = None


class Ranges(NamedTuple):
    """The lowest and the highest of a type's integer scales and mins; both 1 if it has none."""

    scales: tuple[int, int] = (1, 1)
    mins: tuple[int, int] = (1, 1)


@dataclass
class Lattice:
    """Scales of whole rows: w[j, r] ~ step[j // n, r] * level[j, r] - offset[j // n, r].

    step = d * scales, offset = dmin * mins (None without minimum). d, dmin f32[n_cols / B, rows]
    are fp16 values; scales, mins f32[n_cols / n, rows] integers within `ranges`; S = B / n.
    Levels are the numbers that `rounding` rounds to; they fit int8.
    """

    rounding: Rounding
    ranges: Ranges
    block_size: int  # B
    sub_blocks: int  # S
    d: np.ndarray
    scales: np.ndarray
    dmin: IfMinimum
    mins: IfMinimum

    @property
    def sub_block_size(self) -> int:
        """n"""
        return self.block_size // self.sub_blocks

    @property
    def step(self) -> np.ndarray:
        return self._spread(self.d) * self.scales

    @property
    def offset(self) -> IfMinimum:
        return None if self.dmin is None else self._spread(self.dmin) * self.mins

    def dequantize(self, levels: np.ndarray) -> np.ndarray:
        """Weights f32[n_cols, rows] of levels i8[n_cols, rows], to the bit those of the file."""
        w = levels.astype(np.float32)
        by_sub_block = w.reshape(-1, self.sub_block_size, w.shape[1])
        by_sub_block *= self.step[:, None]
        if self.dmin is not None:
            by_sub_block -= self.offset[:, None]
        return w

    def nearest(self, w: np.ndarray) -> np.ndarray:
        """Levels i8[n_cols, rows] nearest to weights f32[n_cols, rows]."""
        levels = np.empty(w.shape, np.int8)
        step, offset, n = self.step, self.offset, self.sub_block_size
        inverse = reciprocal(step)
        for place in range(len(step)):
            x = w[place * n : place * n + n]
            if offset is not None:
                x = x + offset[place]
            levels[place * n : place * n + n] = self.rounding.nearest(
                x, inverse[place], out=np.empty(x.shape, np.float32)
            )
        return levels

    def part(self, columns: slice) -> "Lattice":
        """The lattice of some columns, whole blocks; changing it in place changes this one."""
        first, last = columns.start // self.block_size, columns.stop // self.block_size
        blocks = slice(first, last)
        places = slice(first * self.sub_blocks, last * self.sub_blocks)
        dmin = None if self.dmin is None else self.dmin[blocks]
        mins = None if self.mins is None else self.mins[places]
        return replace(self, d=self.d[blocks], scales=self.scales[places], dmin=dmin, mins=mins)

    def blocks(self) -> BlockScales:
        """The scales of all blocks, row by row."""
        dmin = None if self.dmin is None else _flat(self.dmin, 1)[0]
        mins = None if self.mins is None else _flat(self.mins, self.sub_blocks)
        return BlockScales(_flat(self.d, 1)[0], _flat(self.scales, self.sub_blocks), dmin, mins)

    def _spread(self, per_block: np.ndarray) -> np.ndarray:
        return np.repeat(per_block, self.sub_blocks, axis=0)


def lattice_of(
    parts: list[BlockScales], rows: int, rounding: Rounding, ranges: Ranges, block_size: int
) -> Lattice:
    """The lattice of rows whose blocks, row by row, have the scales of the parts."""
    sub_blocks = len(parts[0].scales)

    def joined(pieces: list[np.ndarray]) -> np.ndarray:
        """f32[S, blocks] -> f32[n_cols / n, rows]"""
        flat = np.concatenate(pieces, axis=-1)
        by_row = flat.reshape(-1, rows, flat.shape[-1] // rows)
        return np.ascontiguousarray(by_row.transpose(2, 0, 1)).reshape(-1, rows)

    d, scales = joined([part.d for part in parts]), joined([part.scales for part in parts])
    dmin = mins = None
    if parts[0].dmin is not None:
        dmin, mins = joined([part.dmin for part in parts]), joined([part.mins for part in parts])
    return Lattice(rounding, ranges, block_size, sub_blocks, d, scales, dmin, mins)


def cut(scales: BlockScales, start: int, stop: int, pad: bool = True) -> BlockScales:
    """The blocks start..stop, arrays of their own, and as many of zeros as make up a tile."""

    def part(values: np.ndarray) -> np.ndarray:
        count = padded(stop - start) if pad else stop - start
        out = np.zeros((*values.shape[:-1], count), np.float32)
        out[..., : stop - start] = values[..., start:stop]
        return out

    dmin, mins = (None if values is None else part(values) for values in scales[2:])
    return BlockScales(part(scales.d), part(scales.scales), dmin, mins)


def load_codes(blocks: np.ndarray) -> np.ndarray:
    """u8[count, block_size] (contiguous) -> units u8[U, 4 R]; blocks that pad are zero."""
    units = np.zeros((blocks.shape[1] // LANES, padded(len(blocks))), np.uint32)
    units[:, : len(blocks)] = blocks.view(np.uint32).T
    return units.view(np.uint8)


def load_weights(blocks: np.ndarray) -> np.ndarray:
    """Weights of squared errors > 0 as tiles.load, with ones for the blocks that pad."""
    units = load(blocks)
    units[:, LANES * len(blocks) :] = 1
    return units


def _flat(values: np.ndarray, per_block: int) -> np.ndarray:
    """f32[n_cols / n, rows] -> f32[S, blocks], blocks row by row."""
    rows = values.shape[1]
    return values.reshape(-1, per_block, rows).transpose(1, 2, 0).reshape(per_block, -1)
