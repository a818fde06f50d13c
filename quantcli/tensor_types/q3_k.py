"""Q3_K: 16 sub-blocks of 16 weights, w = (d * scale) * (q - 4), q = 0..7, scale = -32..31."""

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.rounding import F16_MAX, half_bits
from quantcli.kernels.symmetric import SymmetricGrid
from quantcli.tensor_types.families import SymmetricSuperBlock


class Q3_K(SymmetricSuperBlock):
    name, ggml_id = "Q3_K", 11
    sub_blocks, nmax, nscale = 16, 4, 32
    # Weight j of sub-block 8h + 2q + s (h = half, q = quarter) is weight 128h + 32q + 16s + j.
    # hmask   byte [s, j]: bit 4h + q is bit 2 of the code
    # qs      byte [h, s, j]: bits 0-1 of the codes | q=3 : 2 | q=2 : 2 | q=1 : 2 | q=0 : 2 |
    # scales  scale + 32; bytes 0-7: bits 0-3 of | scale i+8 | scale i |,
    #         bytes 8-11: bits 4-5 of | scale i+12 | scale i+8 | scale i+4 | scale i |
    # d       fp16
    record = np.dtype(
        [("hmask", "u1", (2, 16)), ("qs", "u1", (2, 2, 16)), ("scales", "u1", 12), ("d", "<f2")]
    )
    max_abs = F16_MAX * 31 * 3
    deltas = (-0.9, -0.2, 0.5)
    weighted_deltas = (-0.9, -0.4, 0, 0.4, 0.9, 2.2)

    def pack(self, codes: np.ndarray, grid: SymmetricGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"] = half_bits(grid.d)
        low = bits.field(codes, 0, 2).reshape(2, 4, 8, -1)
        high = bits.field(codes, 2, 1).reshape(8, 8, -1)
        bits.store(bits.merge(low, 1, bits=2), records, "qs")
        bits.store(bits.merge(high, 0, bits=1), records, "hmask")
        scales = (grid.scales + np.float32(32)).astype(np.uint8)
        records["scales"][:, :8] = bits.merge((scales & 15).reshape(2, 8, -1), 0, bits=4).T
        records["scales"][:, 8:] = bits.merge((scales >> 4).reshape(4, 4, -1), 0, bits=2).T
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, SymmetricGrid]:
        d = records["d"].astype(np.float32)
        codes = bits.split(bits.load(records, "qs").reshape(2, 8, -1), 1, bits=2).reshape(64, -1)
        high = bits.split(bits.load(records, "hmask"), 0, bits=1).reshape(64, -1)
        bits.add_field(codes, high, 2)
        scales = bits.split(records["scales"][:, :8].T, 0, bits=4).reshape(16, -1)
        scales |= bits.split(records["scales"][:, 8:].T, 0, bits=2).reshape(16, -1) << np.uint8(4)
        return codes, SymmetricGrid(d, scales.astype(np.float32) - np.float32(32))
