"""Q4_0: 32 weights, w = d * (q - 8). Without importance ggml's quantize_row_q4_0_ref."""

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.rounding import F16_MAX, reciprocal
from quantcli.tensor_types.families import SymmetricBlock, SymmetricBlockGrid


class Q4_0(SymmetricBlock):
    name, ggml_id = "Q4_0", 2
    nmax = 8
    # d   fp16
    # qs  byte j: | weight j+16 : 4 | weight j : 4 |
    record = np.dtype([("d", "<f2"), ("qs", "u1", 16)])
    max_abs = F16_MAX * 7
    weighted_deltas = (-1.8, -1.2, -0.7, -0.3, 0.1, 0.5, 0.9)

    def pack(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"] = grid.d
        bits.store(bits.merge(codes.reshape(2, 4, -1), 0, bits=4), records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, SymmetricBlockGrid]:
        d = records["d"].astype(np.float32)
        codes = bits.split(bits.load(records, "qs"), 0, bits=4).reshape(8, -1)
        return codes, SymmetricBlockGrid(d, reciprocal(d))
