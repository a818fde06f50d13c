"""Q8_0: 32 weights, w = d * q, q = -127..127. Byte for byte ggml's quantize_row_q8_0_ref."""

import numpy as np

from quantcli.kernels import bits, scratch
from quantcli.kernels.rounding import F16_MAX, clip, half_bits, reciprocal
from quantcli.kernels.symmetric import Integers
from quantcli.kernels.tiles import largest_magnitudes, spread
from quantcli.tensor_types.families import OneScale, SymmetricBlockGrid, to_bytes, to_floats


class _Signed(Integers):
    """Stored as they are."""

    def codes_of(self, levels: np.ndarray) -> np.ndarray:
        return levels


class Q8_0(OneScale):
    name, ggml_id = "Q8_0", 8
    rounding = _Signed(-127, 127)
    # d   fp16
    # qs  byte j: code of weight j
    record = np.dtype([("d", "<f2"), ("qs", "i1", 32)])
    max_abs = F16_MAX * 127

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> SymmetricBlockGrid:
        """The extreme maps to +-127; ggml uses no importance here, 8 bits leave nothing to win."""
        d = largest_magnitudes(tile) / np.float32(127) + np.float32(0)  # not -0
        return SymmetricBlockGrid(half_bits(d), reciprocal(d), covers=True)

    def round(self, tile: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        """Half away from zero, as ggml: by integers, of halves that were cut off towards zero."""
        tile *= spread(grid.inverse + grid.inverse)
        if not grid.covers:
            clip(tile, np.float32(-254), np.float32(254), out=tile)
        codes = to_bytes(tile, np.int16)
        up = np.right_shift(codes, np.int16(15), out=scratch.empty(tile.shape, np.int16))
        up += np.int16(1)  # 0 for negative ones, which shifting takes down
        codes += up
        codes >>= np.int16(1)
        return to_bytes(codes, np.int8)

    def pack(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"] = grid.d
        bits.store(codes, records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, SymmetricBlockGrid]:
        d = records["d"].astype(np.float32)
        return bits.load(records, "qs").view(np.int8), SymmetricBlockGrid(d, reciprocal(d))

    def dequantize(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        w = to_floats(codes)
        w *= spread(grid.d)
        return w
