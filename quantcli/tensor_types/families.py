"""What tensor types of one family share: everything but the layout, the grid and the candidates."""

from typing import ClassVar, NamedTuple

import numpy as np

from quantcli.kernels import affine, symmetric
from quantcli.kernels.rounding import nearest, reciprocal, signed_extreme, to_half
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
        return records.view(self.record["w"]).reshape(1, 1, -1), None


class SuperBlock(TensorType):
    """A K type: 256 weights in sub-blocks whose integer scales are multiples of an fp16 d."""

    block_size = 256
    nmax: ClassVar[int]
    nscale: ClassVar[int]


class AffineSuperBlock(SuperBlock):
    """w = (d * scales) * code - (dmin * mins); codes 0..nmax, scales and mins 0..nscale."""

    candidates: ClassVar[affine.Candidates]
    weighted_candidates: ClassVar[affine.Candidates]

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> affine.AffineGrid:
        candidates, passes = (
            (self.candidates, 1) if weights is None else (self.weighted_candidates, 2)
        )
        return affine.fit_super_blocks(tile, weights, self.nmax, self.nscale, candidates, passes)

    def round(self, tile: np.ndarray, grid: affine.AffineGrid) -> np.ndarray:
        codes = np.empty_like(tile)
        nearest(tile, reciprocal(grid.step), grid.offset, 0, self.nmax, out=codes)
        return codes.astype(np.uint8)

    def dequantize(self, codes: np.ndarray, grid: affine.AffineGrid) -> np.ndarray:
        w = codes * grid.step
        w -= grid.offset
        return w


class SymmetricSuperBlock(SuperBlock):
    """w = (d * scales) * (code - nmax); codes 0..2*nmax-1, scales -nscale..nscale-1."""

    deltas: ClassVar[tuple[float, ...]]
    weighted_deltas: ClassVar[tuple[float, ...]]

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> symmetric.SymmetricGrid:
        deltas = self.deltas if weights is None else self.weighted_deltas
        return symmetric.fit_super_blocks(tile, weights, self.nmax, self.nscale, deltas)

    def round(self, tile: np.ndarray, grid: symmetric.SymmetricGrid) -> np.ndarray:
        codes = np.empty_like(tile)
        nearest(tile, reciprocal(grid.step), None, -self.nmax, self.nmax - 1, out=codes)
        codes += np.float32(self.nmax)
        return codes.astype(np.uint8)

    def dequantize(self, codes: np.ndarray, grid: symmetric.SymmetricGrid) -> np.ndarray:
        w = codes.astype(np.float32)
        w -= np.float32(self.nmax)
        w *= grid.step
        return w


class SymmetricBlockGrid(NamedTuple):
    """Scale f32[R] of blocks: d as stored (fp16 values) and the factor that rounding uses.

    Without importance ggml chooses codes by 1 / d before d is rounded to fp16, and so do we.
    """

    d: np.ndarray
    inverse: np.ndarray


class SymmetricBlock(TensorType):
    """w = d * (code - nmax); 32 weights with their own d, codes 0..2*nmax-1."""

    block_size = 32
    nmax: ClassVar[int]
    weighted_deltas: ClassVar[tuple[float, ...]]

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> SymmetricBlockGrid:
        if weights is None:
            d = signed_extreme(tile)[0] / np.float32(-self.nmax)
            return SymmetricBlockGrid(to_half(d), reciprocal(d))
        d = symmetric.fit_blocks(tile, weights, self.nmax, self.weighted_deltas)[0]
        return SymmetricBlockGrid(d, reciprocal(d))

    def round(self, tile: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        """Half up, as ggml (whose K types round half to even)."""
        codes = tile * grid.inverse
        codes += np.float32(self.nmax + 0.5)
        np.clip(codes, np.float32(0), np.float32(2 * self.nmax - 1), out=codes)
        return codes.astype(np.uint8)

    def dequantize(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        w = codes.astype(np.float32)
        w -= np.float32(self.nmax)
        w *= grid.d
        return w


class AffineBlockGrid(NamedTuple):
    """Scale and minimum f32[R] of blocks: d, m as stored and what rounding uses in their place.

    Without importance ggml chooses codes by both before they are rounded to fp16, and so do we.
    """

    d: np.ndarray
    m: np.ndarray
    inverse: np.ndarray
    origin: np.ndarray


class AffineBlock(TensorType):
    """w = d * code + m; 32 weights with their own d and m, codes 0..nmax."""

    block_size = 32
    nmax: ClassVar[int]
    weighted_candidates: ClassVar[affine.Candidates]

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> AffineBlockGrid:
        if weights is None:
            low = np.minimum.reduce(tile, axis=0)[0]
            d = (np.maximum.reduce(tile, axis=0)[0] - low) / np.float32(self.nmax)
            return AffineBlockGrid(to_half(d), to_half(low), reciprocal(d), low)
        step, minimum = affine.fit_blocks(tile, weights, self.nmax, self.weighted_candidates)
        return AffineBlockGrid(step[0], minimum[0], reciprocal(step[0]), minimum[0])

    def round(self, tile: np.ndarray, grid: AffineBlockGrid) -> np.ndarray:
        """Half up, as ggml (whose K types round half to even)."""
        codes = tile - grid.origin
        codes *= grid.inverse
        codes += np.float32(0.5)
        np.clip(codes, np.float32(0), np.float32(self.nmax), out=codes)
        return codes.astype(np.uint8)

    def dequantize(self, codes: np.ndarray, grid: AffineBlockGrid) -> np.ndarray:
        w = codes * grid.d
        w += grid.m
        return w
