"""Q5_1: 32 weights, w = d * q + m. Without importance ggml's quantize_row_q5_1_ref."""

from itertools import product

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.rounding import F16_MAX, reciprocal
from quantcli.tensor_types.families import AffineBlock, AffineBlockGrid


class Q5_1(AffineBlock):
    name, ggml_id = "Q5_1", 7
    nmax = 31
    # d, m  fp16
    # qh    bit j of 32: bit 4 of weight j
    # qs    byte j: | weight j+16 bits 0-3 | weight j bits 0-3 |
    record = np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "<u4"), ("qs", "u1", 16)])
    max_abs = F16_MAX
    weighted_candidates = tuple(product((-2, -1, 0, 0.7), (-0.3, 0, 0.3)))

    def pack(self, codes: np.ndarray, grid: AffineBlockGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"], records["m"] = grid.d, grid.m
        records["qh"] = bits.fifth_bits(codes)
        low = bits.field(codes, 0, 4).reshape(2, 4, -1)
        bits.store(bits.merge(low, 0, bits=4), records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, AffineBlockGrid]:
        d, m = records["d"].astype(np.float32), records["m"].astype(np.float32)
        codes = bits.split(bits.load(records, "qs"), 0, bits=4).reshape(8, -1)
        codes |= bits.from_fifth_bits(records["qh"])
        return codes, AffineBlockGrid(d, m, reciprocal(d), m)
