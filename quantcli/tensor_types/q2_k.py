"""Q2_K: 16 sub-blocks of 16 weights, w = (d * scale) * q - (dmin * min), q = 0..3."""

import numpy as np

from quantcli.kernels import bits
from quantcli.kernels.affine import AffineGrid
from quantcli.kernels.rounding import F16_MAX, half_bits
from quantcli.tensor_types.families import AffineSuperBlock


class Q2_K(AffineSuperBlock):
    name, ggml_id = "Q2_K", 10
    sub_blocks, nmax, nscale = 16, 3, 15
    # Weight j of sub-block 8h + 2q + s (h = half, q = quarter) is weight 128h + 32q + 16s + j.
    # scales   byte of each sub-block: | min : 4 | scale : 4 |
    # qs       byte [h, s, j]: | q=3 : 2 | q=2 : 2 | q=1 : 2 | q=0 : 2 |
    # d, dmin  fp16
    record = np.dtype(
        [("scales", "u1", 16), ("qs", "u1", (2, 2, 16)), ("d", "<f2"), ("dmin", "<f2")]
    )
    max_abs = F16_MAX * 15
    candidates = ((0.6, 0), (0.6, -0.3), (0.6, -0.6))
    weighted_candidates = (
        (-0.8, 0.45),
        (0.3, 0.2),
        (0.7, -0.3),
        (0.8, -0.6),
        (1.1, 0.1),
        (2.3, -0.65),
    )

    def pack(self, codes: np.ndarray, grid: AffineGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"], records["dmin"] = half_bits(grid.d), half_bits(grid.dmin)
        records["scales"] = (grid.scales + np.float32(16) * grid.mins).astype(np.uint8).T
        bits.store(bits.merge(codes.reshape(2, 4, 8, -1), 1, bits=2), records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, AffineGrid]:
        d, dmin = records["d"].astype(np.float32), records["dmin"].astype(np.float32)
        packed = np.ascontiguousarray(records["scales"].T)
        scales, mins = (packed & 15).astype(np.float32), (packed >> 4).astype(np.float32)
        codes = bits.split(bits.load(records, "qs").reshape(2, 8, -1), 1, bits=2)
        return codes.reshape(64, -1), AffineGrid(d, dmin, scales, mins)
