"""IQ4_NL: 32 weights, w = d * VALUES[q], q = 0..15: finer near zero, where most weights are."""

import numpy as np

from quantcli.kernels import bits, scratch, symmetric
from quantcli.kernels.codebook import Codebook
from quantcli.kernels.rounding import F16_MAX, half_bits, reciprocal
from quantcli.kernels.tiles import planes, spread
from quantcli.tensor_types.families import OneScale, SymmetricBlockGrid, stretched

VALUES = Codebook(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class IQ4_NL(OneScale):
    name, ggml_id = "IQ4_NL", 20
    rounding = VALUES
    # d   fp16
    # qs  byte j: | weight j+16 : 4 | weight j : 4 |
    record = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    max_abs = F16_MAX * 112
    # -240: the extreme maps to the highest value, 113.
    deltas = (-14, -7, 0, 7, -247, -240, -233)

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> SymmetricBlockGrid:
        return stretched(*symmetric.fit_blocks(planes(tile, 1), weights, VALUES, self.deltas))

    def round(self, tile: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        return VALUES.codes(tile, spread(grid.inverse))

    def pack(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"] = half_bits(grid.d)
        bits.store(bits.merge(codes.reshape(2, 4, -1), 0, bits=4), records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, SymmetricBlockGrid]:
        d = records["d"].astype(np.float32)
        codes = bits.split(bits.load(records, "qs"), 0, bits=4).reshape(8, -1)
        return codes, SymmetricBlockGrid(d, reciprocal(d))

    def dequantize(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        w = np.take(VALUES.values, codes, out=scratch.empty(codes.shape), mode="clip")
        w *= spread(grid.d)
        return w
