"""Q5_K: 8 sub-blocks of 32 weights, w = (d * scale) * q - (dmin * min), q = 0..31."""

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.affine import AffineGrid
from quantcli.kernels.rounding import F16_MAX, half_bits
from quantcli.tensor_types.families import AffineSuperBlock


class Q5_K(AffineSuperBlock):
    name, ggml_id = "Q5_K", 13
    sub_blocks, nmax, nscale = 8, 31, 63
    # d, dmin  fp16
    # scales   8 scales and 8 mins of 6 bits: see bits.six_bit_pairs
    # qh       byte j: bit s is bit 4 of sub-block s, weight j
    # qs       byte j of group g: | sub-block 2g+1, weight j : 4 | sub-block 2g, weight j : 4 |
    record = np.dtype(
        [
            ("d", "<f2"),
            ("dmin", "<f2"),
            ("scales", "u1", 12),
            ("qh", "u1", 32),
            ("qs", "u1", (4, 32)),
        ]
    )
    max_abs = F16_MAX * 63
    candidates = ((-0.7, -0.2), (0.1, -0.2), (0.1, 0.1))
    weighted_candidates = (
        (-2.9, 0),
        (-2, 0),
        (-0.8, -0.1),
        (-0.5, 0.3),
        (-0.15, 0),
        (0.5, 0),
        (0.8, -0.65),
    )

    def pack(self, codes: np.ndarray, grid: AffineGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"], records["dmin"] = half_bits(grid.d), half_bits(grid.dmin)
        records["scales"] = bits.six_bit_pairs(grid.scales, grid.mins)
        low = bits.field(codes, 0, 4).reshape(4, 2, 8, -1)
        high = bits.field(codes, 4, 1).reshape(8, 8, -1)
        bits.store(bits.merge(low, 1, bits=4), records, "qs")
        bits.store(bits.merge(high, 0, bits=1), records, "qh")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, AffineGrid]:
        d, dmin = records["d"].astype(np.float32), records["dmin"].astype(np.float32)
        codes = bits.split(bits.load(records, "qs").reshape(4, 8, -1), 1, bits=4).reshape(64, -1)
        high = bits.split(bits.load(records, "qh"), 0, bits=1).reshape(64, -1)
        bits.add_field(codes, high, 4)
        return codes, AffineGrid(d, dmin, *bits.from_six_bit_pairs(records["scales"]))
