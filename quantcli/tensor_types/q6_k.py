"""Q6_K: 16 sub-blocks of 16 weights, w = (d * scale) * (q - 32), q = 0..63, scale = -128..127."""

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.rounding import F16_MAX, half_bits
from quantcli.kernels.symmetric import SymmetricGrid
from quantcli.tensor_types.families import SymmetricSuperBlock


class Q6_K(SymmetricSuperBlock):
    name, ggml_id = "Q6_K", 14
    sub_blocks, nmax, nscale = 16, 32, 128
    # Weight j of sub-block 8h + 2q + s (h = half, q = quarter) is weight 128h + 32q + 16s + j.
    # ql      byte [h, q % 2, s, j]: bits 0-3 of the codes | q + 2 | q |
    # qh      byte [h, s, j]: bits 4-5 of the codes | q=3 : 2 | q=2 : 2 | q=1 : 2 | q=0 : 2 |
    # scales  signed bytes
    # d       fp16
    record = np.dtype(
        [("ql", "u1", (2, 2, 2, 16)), ("qh", "u1", (2, 2, 16)), ("scales", "i1", 16), ("d", "<f2")]
    )
    max_abs = F16_MAX * 127 * 31
    deltas = (-1.7, -0.85, 0)
    weighted_deltas = (-5, -2.9, -1.8, -0.9, 0)

    def pack(self, codes: np.ndarray, grid: SymmetricGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"] = half_bits(grid.d)
        records["scales"] = grid.scales.astype(np.int8).T
        low = bits.field(codes, 0, 4).reshape(2, 2, 2, 8, -1)
        high = bits.field(codes, 4, 2).reshape(2, 4, 8, -1)
        bits.store(bits.merge(low, 1, bits=4), records, "ql")
        bits.store(bits.merge(high, 1, bits=2), records, "qh")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, SymmetricGrid]:
        d = records["d"].astype(np.float32)
        low = bits.split(bits.load(records, "ql").reshape(2, 2, 8, -1), 1, bits=4)
        high = bits.split(bits.load(records, "qh").reshape(2, 8, -1), 1, bits=2)
        codes = low.reshape(64, -1)
        bits.add_field(codes, high.reshape(64, -1), 4)
        scales = np.ascontiguousarray(records["scales"].T).astype(np.float32)
        return codes, SymmetricGrid(d, scales)
