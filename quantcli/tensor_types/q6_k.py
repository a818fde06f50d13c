"""Q6_K: 16 sub-blocks of 16 weights, w = (d * scale) * (q - 32), q = 0..63, scale = -128..127."""

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.rounding import F16_MAX
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
    deltas = (-6, -4, -2, 0)
    weighted_deltas = (-8, -6, -4, -2, 0, 0.9)

    def pack(self, codes: np.ndarray, grid: SymmetricGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"] = grid.d
        records["scales"] = grid.scales.astype(np.int8).T
        low = bits.field(codes, 0, 4).reshape(16, 2, 2, 2, 2, -1)
        high = bits.field(codes, 4, 2).reshape(16, 2, 4, 2, -1)
        records["ql"] = bits.merge(low, 2, bits=4).transpose(4, 1, 2, 3, 0)
        records["qh"] = bits.merge(high, 2, bits=2).transpose(3, 1, 2, 0)
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, SymmetricGrid]:
        d = records["d"].astype(np.float32)
        codes = bits.split(records["ql"].transpose(4, 1, 2, 3, 0), 2, bits=4).reshape(16, 16, -1)
        high = bits.split(records["qh"].transpose(3, 1, 2, 0), 2, bits=2).reshape(16, 16, -1)
        codes |= high << np.uint8(4)
        scales = np.ascontiguousarray(records["scales"].T).astype(np.float32)
        return codes, SymmetricGrid(d, scales)
