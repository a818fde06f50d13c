"""Q5_0: 32 weights, w = d * (q - 16). Without importance ggml's quantize_row_q5_0_ref."""

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.rounding import F16_MAX, reciprocal
from quantcli.tensor_types.families import SymmetricBlock, SymmetricBlockGrid


class Q5_0(SymmetricBlock):
    name, ggml_id = "Q5_0", 6
    nmax = 16
    # d   fp16
    # qh  bit j of 32: bit 4 of weight j
    # qs  byte j: | weight j+16 bits 0-3 | weight j bits 0-3 |
    record = np.dtype([("d", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)])
    max_abs = F16_MAX * 15
    weighted_deltas = (-3, -2, -1.2, -0.8, -0.4, 0, 0.4, 0.8)

    def pack(self, codes: np.ndarray, grid: SymmetricBlockGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"] = grid.d
        records["qh"] = bits.fifth_bits(codes)
        low = bits.field(codes, 0, 4).reshape(2, 4, -1)
        bits.store(bits.merge(low, 0, bits=4), records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, SymmetricBlockGrid]:
        d = records["d"].astype(np.float32)
        codes = bits.split(bits.load(records, "qs"), 0, bits=4).reshape(8, -1)
        codes |= bits.from_fifth_bits(records["qh"])
        return codes, SymmetricBlockGrid(d, reciprocal(d))
