"""Q8_0: 32 weights, w = d * q, q = -127..127. Byte for byte ggml's quantize_row_q8_0_ref."""

import numpy as np

from quantcli.kernels import bits, scratch
from quantcli.kernels.rounding import F16_MAX, clip, half_bits, reciprocal, to_half
from quantcli.kernels.symmetric import Integers
from quantcli.kernels.tiles import fold, spread
from quantcli.tensor_types.families import OneScale, SymmetricBlockGrid, to_bytes, to_floats

# Adding the float below one half and truncating rounds half away from zero; adding one half
# itself would lift 0.49999997 to 1.
BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))
SIGN = np.uint32(1 << 31)


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
        high, low = fold(np.maximum, tile), fold(np.minimum, tile)
        d = np.maximum(high, -low) / np.float32(127) + np.float32(0)
        return SymmetricBlockGrid(to_half(d), reciprocal(d))

    def round(self, tile: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        codes = np.multiply(tile, spread(grid.inverse), out=scratch.empty(tile.shape))
        half = np.bitwise_and(codes.view(np.uint32), SIGN, out=scratch.empty(tile.shape, np.uint32))
        half |= BELOW_HALF.view(np.uint32)
        codes += half.view(np.float32)
        clip(codes, np.float32(-127), np.float32(127), out=codes)
        return to_bytes(codes, np.int8)

    def pack(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"] = half_bits(grid.d)
        bits.store(codes, records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, SymmetricBlockGrid]:
        d = records["d"].astype(np.float32)
        return bits.load(records, "qs").view(np.int8), SymmetricBlockGrid(d, reciprocal(d))

    def dequantize(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        w = to_floats(codes)
        w *= spread(grid.d)
        return w
