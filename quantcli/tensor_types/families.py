"""What tensor types of one family share: everything but the layout, the grid and the candidates."""

from typing import ClassVar, NamedTuple

import numpy as np

from quantcli.kernels import affine, scratch, symmetric
from quantcli.kernels.lattice import BlockScales, Ranges
from quantcli.kernels.rounding import (
    clip,
    first_extreme,
    half_bits,
    nearest,
    reciprocal,
    to_half,
)
from quantcli.kernels.tiles import LANES, extremes, planes, spread
from quantcli.tensor_types.base import TensorType


class Plain(TensorType):
    """One number per weight: there is nothing to fit, a code is the number as stored."""

    block_size = 1
    quantized = False

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> None:
        return None

    def pack(self, codes: np.ndarray, grid: None) -> np.ndarray:
        return codes.reshape(-1).view(self.record)

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, None]:
        return records.view(self.record["w"]).reshape(1, -1), None


class SuperBlock(TensorType):
    """A K type: 256 weights in sub-blocks whose integer scales are multiples of an fp16 d."""

    block_size = 256
    nmax: ClassVar[int]
    nscale: ClassVar[int]

    def by_sub_block(self, units: np.ndarray) -> np.ndarray:
        """View [U, 4 R] as [S, U / S, 4 R], which per_unit scales broadcast to."""
        return units.reshape(self.sub_blocks, -1, units.shape[1])

    @staticmethod
    def per_unit(scales: np.ndarray) -> np.ndarray:
        """Scales f32[S, R] as [S, 1, 4 R]."""
        return spread(scales)[:, None]


class AffineSuperBlock(SuperBlock):
    """w = (d * scales) * code - (dmin * mins); codes 0..nmax, scales and mins 0..nscale."""

    candidates: ClassVar[affine.Candidates]
    weighted_candidates: ClassVar[affine.Candidates]

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> affine.AffineGrid:
        candidates, passes = (
            (self.candidates, 1) if weights is None else (self.weighted_candidates, 2)
        )
        x = planes(tile, self.sub_blocks)
        return affine.fit_super_blocks(x, weights, self.nmax, self.nscale, candidates, passes)

    def round(self, tile: np.ndarray, grid: affine.AffineGrid) -> np.ndarray:
        x = self.by_sub_block(tile)
        inverse = self.per_unit(reciprocal(grid.step) * grid.gain)
        offset = self.per_unit(grid.offset / grid.gain)
        nearest(x, inverse, offset, 0, self.nmax, out=x)
        return to_bytes(tile)

    @property
    def rounding(self) -> symmetric.Rounding:
        return symmetric.Integers(0, self.nmax)

    @property
    def ranges(self) -> Ranges:
        return Ranges((0, self.nscale), (0, self.nscale))

    def scales_of(self, grid: affine.AffineGrid) -> BlockScales:
        d, dmin = (to_half(stored / grid.gain) for stored in (grid.d, grid.dmin))
        return BlockScales(d, grid.scales, dmin, grid.mins)

    def grid_of(self, scales: BlockScales) -> affine.AffineGrid:
        return affine.AffineGrid(scales.d, scales.dmin, scales.scales, scales.mins)

    def dequantize(self, codes: np.ndarray, grid: affine.AffineGrid) -> np.ndarray:
        w = to_floats(codes)
        by_sub_block = self.by_sub_block(w)
        by_sub_block *= self.per_unit(grid.step)
        by_sub_block -= self.per_unit(grid.offset)
        return w


class SymmetricSuperBlock(SuperBlock):
    """w = (d * scales) * (code - nmax); codes 0..2*nmax-1, scales -nscale..nscale-1."""

    deltas: ClassVar[tuple[float, ...]]
    weighted_deltas: ClassVar[tuple[float, ...]]

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> symmetric.SymmetricGrid:
        deltas = self.deltas if weights is None else self.weighted_deltas
        x = planes(tile, self.sub_blocks)
        return symmetric.fit_super_blocks(x, weights, self.rounding, self.nscale, deltas)

    @property
    def rounding(self) -> symmetric.Rounding:
        return symmetric.Integers(-self.nmax, self.nmax - 1)

    @property
    def ranges(self) -> Ranges:
        return Ranges((-self.nscale, self.nscale - 1))

    def scales_of(self, grid: symmetric.SymmetricGrid) -> BlockScales:
        return BlockScales(to_half(grid.d / grid.gain), grid.scales)

    def grid_of(self, scales: BlockScales) -> symmetric.SymmetricGrid:
        return symmetric.SymmetricGrid(scales.d, scales.scales)

    def round(self, tile: np.ndarray, grid: symmetric.SymmetricGrid) -> np.ndarray:
        x = self.by_sub_block(tile)
        inverse = self.per_unit(reciprocal(grid.step) * grid.gain)
        nearest(x, inverse, None, -self.nmax, self.nmax - 1, out=x)
        tile += np.float32(self.nmax)
        return to_bytes(tile)

    def dequantize(self, codes: np.ndarray, grid: symmetric.SymmetricGrid) -> np.ndarray:
        w = to_floats(codes)
        w -= np.float32(self.nmax)
        by_sub_block = self.by_sub_block(w)
        by_sub_block *= self.per_unit(grid.step)
        return w


class SymmetricBlockGrid(NamedTuple):
    """Scale of blocks: d f16[R] as stored and the factor f32[R] that rounding uses.

    Without importance ggml chooses codes by 1 / d before d is rounded to fp16, and so do we. Such
    a grid covers its tile: no weight is beyond +-extreme, so that rounding has little to clip.
    """

    d: np.ndarray
    inverse: np.ndarray
    covers: bool = False


class OneScale(TensorType):
    """32 weights with their own d and nothing else."""

    block_size = 32

    def scales_of(self, grid: SymmetricBlockGrid) -> BlockScales:
        d = to_half(reciprocal(grid.inverse))
        return BlockScales(d, np.ones((1, len(d)), np.float32))

    def grid_of(self, scales: BlockScales) -> SymmetricBlockGrid:
        return SymmetricBlockGrid(half_bits(scales.d), reciprocal(scales.d))


class SymmetricBlock(OneScale):
    """w = d * (code - nmax); codes 0..2*nmax-1."""

    nmax: ClassVar[int]
    weighted_deltas: ClassVar[tuple[float, ...]]

    @property
    def rounding(self) -> symmetric.Rounding:
        return symmetric.Integers(-self.nmax, self.nmax - 1)

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> SymmetricBlockGrid:
        if weights is None:
            d = block_extreme(tile) / np.float32(-self.nmax)
            return SymmetricBlockGrid(half_bits(d), reciprocal(d), covers=True)
        x = planes(tile, 1)
        return stretched(*symmetric.fit_blocks(x, weights, self.rounding, self.weighted_deltas))

    def round(self, tile: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        """Half up, as ggml (whose K types round half to even)."""
        tile *= spread(grid.inverse)
        tile += np.float32(self.nmax + 0.5)
        top = 2 * self.nmax - 1
        if not grid.covers:
            clip(tile, np.float32(0), np.float32(top), out=tile)
        codes = to_bytes(tile)
        # The extreme is code 0, its opposite one too large. Bytes take a fifth of floats' time.
        return clip(codes, np.uint8(0), np.uint8(top), out=codes)

    def dequantize(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        w = to_floats(codes)
        w -= np.float32(self.nmax)
        w *= spread(grid.d)
        return w


def stretched(d: np.ndarray, gain: np.ndarray) -> SymmetricBlockGrid:
    """The grid of blocks that round to d f32[1, R] but store it times gain."""
    return SymmetricBlockGrid(half_bits((d * gain)[0]), reciprocal(d[0]))


class AffineBlockGrid(NamedTuple):
    """Scale and minimum of blocks: d, m f16[R] as stored, and what rounding uses instead f32[R].

    Without importance ggml chooses codes by both before they are rounded to fp16, and so do we.
    Such a grid covers its tile: the extremes are codes 0 and nmax, rounding has nothing to clip.
    """

    d: np.ndarray
    m: np.ndarray
    inverse: np.ndarray
    origin: np.ndarray
    covers: bool = False


class AffineBlock(TensorType):
    """w = d * code + m; 32 weights with their own d and m, codes 0..nmax."""

    block_size = 32
    nmax: ClassVar[int]
    weighted_candidates: ClassVar[affine.Candidates]

    @property
    def rounding(self) -> symmetric.Rounding:
        return symmetric.Integers(0, self.nmax)

    def scales_of(self, grid: AffineBlockGrid) -> BlockScales:
        d, m = to_half(reciprocal(grid.inverse)), to_half(grid.origin)
        ones = np.ones((1, len(d)), np.float32)
        return BlockScales(d, ones, -m, ones)

    def grid_of(self, scales: BlockScales) -> AffineBlockGrid:
        m = -scales.dmin
        return AffineBlockGrid(half_bits(scales.d), half_bits(m), reciprocal(scales.d), m)

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> AffineBlockGrid:
        if weights is None:
            high, low = extremes(tile)
            d = (high - low) / np.float32(self.nmax)
            stored, m = half_bits(np.stack((d, low)))
            return AffineBlockGrid(stored, m, reciprocal(d), low, covers=True)
        x = planes(tile, 1)
        step, minimum, gain = affine.fit_blocks(x, weights, self.nmax, self.weighted_candidates)
        d, m = (half_bits((value * gain)[0]) for value in (step, minimum))
        return AffineBlockGrid(d, m, reciprocal(step[0]), minimum[0])

    def round(self, tile: np.ndarray, grid: AffineBlockGrid) -> np.ndarray:
        """Half up, as ggml (whose K types round half to even)."""
        tile -= spread(grid.origin)
        tile *= spread(grid.inverse)
        tile += np.float32(0.5)
        if not grid.covers:
            clip(tile, np.float32(0), np.float32(self.nmax), out=tile)
        return to_bytes(tile)

    def dequantize(self, codes: np.ndarray, grid: AffineBlockGrid) -> np.ndarray:
        w = to_floats(codes)
        w *= spread(grid.d)
        w += spread(grid.m)
        return w


def block_extreme(tile: np.ndarray) -> np.ndarray:
    """The weight of largest magnitude of each block, the first of two opposite ones: f32[R]."""

    def weights_of(tied: np.ndarray) -> np.ndarray:
        lanes = tile.reshape(len(tile), -1, LANES)
        return lanes[:, tied].transpose(0, 2, 1).reshape(len(tile) * LANES, -1)

    return first_extreme(*extremes(tile), weights_of)


def to_bytes(codes: np.ndarray, dtype: type = np.uint8) -> np.ndarray:
    """Codes as bytes; what follows the decimal point is cut off."""
    out = scratch.empty(codes.shape, dtype)
    np.copyto(out, codes, casting="unsafe")
    return out


def to_floats(codes: np.ndarray) -> np.ndarray:
    out = scratch.empty(codes.shape)
    out[...] = codes
    return out
