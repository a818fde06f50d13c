"""Q4_K: 8 sub-blocks of 32 weights, w = (d * scale) * q - (dmin * min), q = 0..15."""

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.affine import AffineGrid
from quantcli.kernels.rounding import F16_MAX, half_bits
from quantcli.tensor_types.families import AffineSuperBlock


class Q4_K(AffineSuperBlock):
    name, ggml_id = "Q4_K", 12
    sub_blocks, nmax, nscale = 8, 15, 63
    # d, dmin  fp16
    # scales   8 scales and 8 mins of 6 bits: see bits.six_bit_pairs
    # qs       byte j of group g: | sub-block 2g+1, weight j : 4 | sub-block 2g, weight j : 4 |
    record = np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", (4, 32))])
    max_abs = F16_MAX * 63
    candidates = (
        (-0.7, -0.15),
        (-0.3, 0.3),
        (0.15, -0.2),
        (0.15, 0.25),
        (0.35, -0.05),
        (0.4, -0.45),
    )
    weighted_candidates = (
        (-1.75, 0.95),
        (-1, 0),
        (0.15, 0),
        (0.45, -0.4),
        (0.7, 0),
        (0.8, -0.8),
        (2.55, -0.5),
    )

    def pack(self, codes: np.ndarray, grid: AffineGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"], records["dmin"] = half_bits(grid.d), half_bits(grid.dmin)
        records["scales"] = bits.six_bit_pairs(grid.scales, grid.mins)
        bits.store(bits.merge(codes.reshape(4, 2, 8, -1), 1, bits=4), records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, AffineGrid]:
        d, dmin = records["d"].astype(np.float32), records["dmin"].astype(np.float32)
        codes = bits.split(bits.load(records, "qs").reshape(4, 8, -1), 1, bits=4)
        return codes.reshape(64, -1), AffineGrid(
            d, dmin, *bits.from_six_bit_pairs(records["scales"])
        )
