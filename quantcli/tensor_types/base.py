"""The contract of a tensor type: how a run of weights becomes a block of bytes, and back.

Encoding is three steps, because error-compensating methods must round column by column against
scales that are already fixed: fit (scales, in stored precision), round (codes), pack (bytes).
Tiles and codes are units [U, 4 R]: weight 4 u + lane of block r is [u, 4 r + lane], see
quantcli.kernels. Every block is independent of its neighbours: bytes do not depend on how rows are
grouped into calls or tiles. Arrays that these functions return may be scratch memory of the
calling thread, good until the end of the frame around them (quantcli.kernels.scratch), if any;
grids are arrays of their own.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from quantcli.errors import BadInputError
from quantcli.kernels import scratch, tiles
from quantcli.kernels.lattice import (
    BlockScales,
    Lattice,
    Ranges,
    cut,
    lattice_of,
    load_codes,
    load_weights,
)
from quantcli.kernels.symmetric import Rounding
from quantcli.tensor_types.deviation import Deviation

# What fit returns and round, pack and dequantize take: arrays of scales, of a shape that only
# the type itself and its kernel know.
Grid = Any


class TensorType(ABC):
    """One GGUF block format. Instances hold no state and may be used by several threads."""

    name: ClassVar[str]
    ggml_id: ClassVar[int]
    block_size: ClassVar[int]  # weights per block
    sub_blocks: ClassVar[int] = 1  # S; n = block_size // S
    record: ClassVar[np.dtype]  # one block as stored, little-endian, ggml's field names
    max_abs: ClassVar[float]  # weights up to here never overflow a stored scale
    quantized: ClassVar[bool] = True

    @property
    def rounding(self) -> Rounding:
        """The levels that codes stand for (of quantized types)."""
        raise NotImplementedError(f"{self.name} has no levels")

    @property
    def ranges(self) -> Ranges:
        """The integers that scales and mins may be."""
        return Ranges()

    def scales_of(self, grid: Grid) -> BlockScales:
        """The scales that the fit of this grid rounded to: as stored, but not stretched."""
        raise NotImplementedError(f"{self.name} has no scales")

    def grid_of(self, scales: BlockScales) -> Grid:
        """The grid that stores these scales."""
        raise NotImplementedError(f"{self.name} has no scales")

    @property
    def type_size(self) -> int:
        """Bytes per block."""
        return self.record.itemsize

    @property
    def _opaque(self) -> np.dtype:
        """One block as bytes that numpy moves as a whole, not field by field."""
        return np.dtype((np.void, self.type_size))

    def row_bytes(self, n_cols: int) -> int:
        """Bytes of a row of n_cols weights. Raises BadInputError if it is not whole blocks."""
        if n_cols % self.block_size:
            raise BadInputError(
                f"a row of {n_cols} weights is not a multiple of {self.name}'s block of "
                f"{self.block_size}: choose another type for this tensor"
            )
        return n_cols // self.block_size * self.type_size

    @abstractmethod
    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> Grid:
        """Scales for a tile, in stored precision; weights > 0 as planes f32[n, S, R], or None."""

    @abstractmethod
    def round(self, tile: np.ndarray, grid: Grid) -> np.ndarray:
        """The nearest codes [U, 4 R] on any given grid; the tile may be overwritten."""

    @abstractmethod
    def pack(self, codes: np.ndarray, grid: Grid) -> np.ndarray:
        """Records [R] of the codes."""

    @abstractmethod
    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, Grid]:
        """Codes and grid of records [R]."""

    @abstractmethod
    def dequantize(self, codes: np.ndarray, grid: Grid) -> np.ndarray:
        """Weights f32[U, 4 R], to the bit what ggml computes."""

    def encode(
        self,
        w: np.ndarray,
        importance: np.ndarray | None = None,
        *,
        first_row: int = 0,
        deviation: Deviation | None = None,
    ) -> np.ndarray:
        """Quantize w f32[rows, n_cols] to u8[rows, row_bytes(n_cols)].

        importance: f32[n_cols], the weight of each column's squared error (an imatrix row), shared
        by all rows; zeros count as 1e-6 of its mean, all zeros as no importance. first_row is
        where w begins in its tensor, for messages. To deviation is added how far the codes are from
        w: what deviation_of finds in the bytes, in half of the time.

        Raises BadInputError: see check_values; also for rows that are not whole blocks and for
        importance of the wrong length, negative or not finite.
        """
        rows, n_cols = w.shape
        row_bytes = self.row_bytes(n_cols)
        row = None if importance is None else _checked_importance(importance, n_cols)
        shared = None
        if row is not None:
            shared = tiles.ImportanceTiles(row, self.block_size, self.sub_blocks)
        blocks = np.ascontiguousarray(w, np.float32).reshape(-1, self.block_size)
        out = np.empty(len(blocks), self._opaque)
        for start, stop in tiles.spans(len(blocks), n_cols // self.block_size, self.block_size):
            weights = shared.tile(start, stop) if shared else None
            with scratch.frame():
                tile = tiles.load(blocks[start:stop])
                if not _within(tile, self.max_abs):
                    check_values(w, self, first_row)
                with scratch.frame():
                    grid = self.fit(tile, weights)
                codes = self.round(tile if deviation is None else scratch.copy(tile), grid)
                packed = self.pack(codes, grid)
                out[start:stop] = packed.view(self._opaque)[: stop - start]
                if deviation is not None:
                    deviation.add(tile, self.dequantize(codes, grid), stop - start)
        return out.view(np.uint8).reshape(rows, row_bytes)

    def decode(self, packed: np.ndarray) -> np.ndarray:
        """Weights f32[rows, n_cols] of packed u8[rows, row_bytes]."""
        records = self._records(packed)
        out = np.empty((len(records), self.block_size), np.float32)
        for start, stop in tiles.spans(len(records), 1, self.block_size):
            with scratch.frame():
                tiles.store(self._decoded(records[start:stop]), out[start:stop])
        return out.reshape(len(packed), packed.shape[1] // self.type_size * self.block_size)

    def deviation_of(self, packed: np.ndarray, w: np.ndarray) -> Deviation:
        """How far packed u8[rows, row_bytes] decodes from w f32[rows, n_cols]."""
        records = self._records(packed)
        blocks = np.ascontiguousarray(w, np.float32).reshape(-1, self.block_size)
        found = Deviation()
        for start, stop in tiles.spans(len(records), 1, self.block_size):
            with scratch.frame():
                decoded = self._decoded(records[start:stop])
                found.add(tiles.load(blocks[start:stop]), decoded, stop - start)
        return found

    def _decoded(self, records: np.ndarray) -> np.ndarray:
        """Units f32[U, 4 R] of records, padded with zeros."""
        run = scratch.empty((tiles.padded(len(records)),), self.record)
        # By bytes: numpy would move records one by one.
        memory, source = run.view(np.uint8), records.view(np.uint8)
        memory[: len(source)] = source
        memory[len(source) :] = 0
        return self.dequantize(*self.unpack(run))

    def lattice(self, w: np.ndarray, weights: np.ndarray, *, first_row: int = 0) -> Lattice:
        """The scales that fit finds for rows w f32[rows, n_cols], not stretched.

        weights: f32[rows, n_cols], of each squared error, > 0. For types with quantized = True.
        Raises BadInputError: see check_values, row_bytes.
        """
        self.row_bytes(w.shape[1])
        check_values(w, self, first_row)
        blocks = np.ascontiguousarray(w, np.float32).reshape(-1, self.block_size)
        weight_blocks = weights.reshape(-1, self.block_size)
        parts = []
        for start, stop in tiles.spans(len(blocks), 1, self.block_size):
            with scratch.frame():
                tile = tiles.load(blocks[start:stop])
                planes = tiles.planes(load_weights(weight_blocks[start:stop]), self.sub_blocks)
                scales = self.scales_of(self.fit(tile, planes))
            parts.append(cut(scales, 0, stop - start, pad=False))
        return lattice_of(parts, len(w), self.rounding, self.ranges, self.block_size)

    def pack_lattice(self, levels: np.ndarray, scales: Lattice) -> np.ndarray:
        """Packed u8[rows, row_bytes] of levels i8[n_cols, rows] on a lattice of this type."""
        n_cols, rows = levels.shape
        row_bytes = self.row_bytes(n_cols)
        codes = np.ascontiguousarray(self.rounding.codes_of(levels).T)
        blocks, per_block = codes.reshape(-1, self.block_size), scales.blocks()
        out = np.empty(len(blocks), self._opaque)
        for start, stop in tiles.spans(len(blocks), 1, self.block_size):
            with scratch.frame():
                grid = self.grid_of(cut(per_block, start, stop))
                packed = self.pack(load_codes(blocks[start:stop]), grid)
                out[start:stop] = packed.view(self._opaque)[: stop - start]
        return out.view(np.uint8).reshape(rows, row_bytes)

    def scales_finite(self, packed: np.ndarray) -> bool:
        """Whether all floats stored in packed u8[rows, row_bytes] (d, dmin, m) are finite."""
        records = self._records(packed)
        kinds = {name: self.record[name].kind for name in self.record.names or ()}
        return all(np.isfinite(records[name]).all() for name, kind in kinds.items() if kind == "f")

    def _records(self, packed: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(packed).reshape(-1).view(self.record)


def check_values(w: np.ndarray, type: TensorType, first_row: int = 0) -> None:
    """Raise BadInputError if a weight of w f32[rows, n_cols] is NaN, infinite or beyond max_abs.

    The message names the first offending value, its row (counted from first_row) and column.
    """
    if w.size == 0 or _within(w, type.max_abs):
        return
    row, col = np.argwhere(~(np.abs(w) <= type.max_abs))[0]
    value = w[row, col]
    where = f"weight {value:g} at row {first_row + row}, column {col}"
    if not np.isfinite(value):
        raise BadInputError(f"{where} is not a finite number: the source is damaged")
    raise BadInputError(
        f"{where} is beyond {type.max_abs:g}, the largest that {type.name} can scale: "
        "choose BF16 or F32 for this tensor"
    )


def _within(w: np.ndarray, limit: float) -> bool:
    """Whether all of w f32[rows, n] are finite and at most +-limit."""
    flat = w.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.dot(flat, flat)  # bounds every weight, in half the time of a comparison
    if squares <= min(limit, 1e18) ** 2:
        return True
    return bool(w.max() <= limit and w.min() >= -limit)


def _checked_importance(importance: np.ndarray, n_cols: int) -> np.ndarray | None:
    if importance.shape != (n_cols,):
        raise BadInputError(
            f"importance of shape {importance.shape} for rows of {n_cols} weights: "
            "the imatrix belongs to another model"
        )
    if not (importance.min() >= 0 and np.isfinite(importance.max())):
        col = int(np.flatnonzero(~((importance >= 0) & np.isfinite(importance)))[0])
        raise BadInputError(
            f"importance {importance[col]:g} of column {col} is negative or not finite: "
            "the imatrix is damaged"
        )
    return tiles.normalized_importance(importance)
