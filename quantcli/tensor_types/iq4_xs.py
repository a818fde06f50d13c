"""IQ4_XS: 8 sub-blocks of 32 weights, w = (d * scale) * VALUES[q] of IQ4_NL, scale = -32..31."""

import numpy as np

from quantcli.kernels import bits, scratch
from quantcli.kernels.rounding import F16_MAX, half_bits, reciprocal
from quantcli.kernels.symmetric import SymmetricGrid
from quantcli.tensor_types.families import SymmetricSuperBlock
from quantcli.tensor_types.iq4_nl import VALUES

HIGH_SHIFTS = np.arange(0, 16, 2, dtype=np.uint16)[:, None]


class IQ4_XS(SymmetricSuperBlock):
    name, ggml_id = "IQ4_XS", 23
    sub_blocks, nscale = 8, 32
    # d         fp16
    # scales_h  bits 4-5 of scale + 32: bits 2s, 2s+1 for sub-block s
    # scales_l  bits 0-3 of scale + 32, byte i: | sub-block 2i+1 : 4 | sub-block 2i : 4 |
    # qs        byte [s, j]: | sub-block s, weight j+16 : 4 | sub-block s, weight j : 4 |
    record = np.dtype(
        [("d", "<f2"), ("scales_h", "<u2"), ("scales_l", "u1", 4), ("qs", "u1", (8, 16))]
    )
    max_abs = F16_MAX * 31 * 112
    deltas = weighted_deltas = (-14, -7, 0, 7, -247, -240, -233)
    rounding = VALUES

    def round(self, tile: np.ndarray, grid: SymmetricGrid) -> np.ndarray:
        codes = VALUES.codes(
            self.by_sub_block(tile), self.per_unit(reciprocal(grid.step) * grid.gain)
        )
        return codes.reshape(tile.shape)

    def pack(self, codes: np.ndarray, grid: SymmetricGrid) -> np.ndarray:
        records = np.empty(len(grid.d), self.record)
        records["d"] = half_bits(grid.d)
        scales = (grid.scales + np.float32(32)).astype(np.uint16)
        records["scales_h"] = np.bitwise_or.reduce((scales >> 4) << HIGH_SHIFTS, axis=0)
        low = (scales & 15).astype(np.uint8)
        records["scales_l"] = (low[0::2] | low[1::2] << 4).T
        bits.store(bits.merge(codes.reshape(8, 2, 4, -1), 1, bits=4), records, "qs")
        return records

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, SymmetricGrid]:
        d = records["d"].astype(np.float32)
        codes = bits.split(bits.load(records, "qs").reshape(8, 4, -1), 1, bits=4).reshape(64, -1)
        scales = ((records["scales_h"] >> HIGH_SHIFTS) & 3) << 4
        scales[0::2] |= records["scales_l"].T & 15
        scales[1::2] |= records["scales_l"].T >> 4
        return codes, SymmetricGrid(d, scales.astype(np.float32) - np.float32(32))

    def dequantize(self, codes: np.ndarray, grid: SymmetricGrid) -> np.ndarray:
        w = np.take(VALUES.values, codes, out=scratch.empty(codes.shape), mode="clip")
        by_sub_block = self.by_sub_block(w)
        by_sub_block *= self.per_unit(grid.step)
        return w
