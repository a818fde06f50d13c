"""Q4_1: 32 weights, w = d * q + m. Without importance ggml's quantize_row_q4_1_ref."""

from itertools import product

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.rounding import F16_MAX, reciprocal
from quantcli.tensor_types.families import AffineBlock, AffineBlockGrid


class Q4_1(AffineBlock):
    name, ggml_id = "Q4_1", 3
    nmax = 15
    # d, m  fp16
    # qs    byte j: | weight j+16 : 4 | weight j : 4 |
    record = np.dtype([("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)])
    max_abs = F16_MAX
    weighted_candidates = tuple(product((-1.5, -1, -0.5, 0, 0.5, 1), (-0.3, 0.3)))

    def pack(self, codes: np.ndarray, grid: AffineBlockGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"], records["m"] = grid.d, grid.m
        bits.store(bits.merge(codes.reshape(2, 4, -1), 0, bits=4), records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, AffineBlockGrid]:
        d, m = records["d"].astype(np.float32), records["m"].astype(np.float32)
        codes = bits.split(bits.load(records, "qs"), 0, bits=4).reshape(8, -1)
        return codes, AffineBlockGrid(d, m, reciprocal(d), m)
