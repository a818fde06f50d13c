"""MXFP4: 32 weights, w = 2^(e - 128) * VALUES[q]: numbers of 4 bits that share a power of two.

OCP Microscaling Formats, whose numbers VALUES doubles. Files have it where a model was published in
it; it is decoded here, and not chosen.
"""

import numpy as np

from quantcli.kernels import bits, scratch
from quantcli.kernels.tiles import spread
from quantcli.tensor_types.copied import Copied

VALUES = np.array((0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12), np.float32)
NOT_A_NUMBER = 255
SCALES = np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


class MXFP4(Copied):
    name, ggml_id = "MXFP4", 39
    block_size = 32
    quantized = True
    # e   exponent
    # qs  byte j: | weight j+16 : 4 | weight j : 4 |
    record = np.dtype([("e", "u1"), ("qs", "u1", 16)])

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = bits.split(bits.load(records, "qs"), 0, bits=4).reshape(8, -1)
        return codes, np.take(SCALES, records["e"])

    def dequantize(self, codes: np.ndarray, grid: np.ndarray) -> np.ndarray:
        w = np.take(VALUES, codes, out=scratch.empty(codes.shape), mode="clip")
        with np.errstate(over="ignore"):  # of a scale that is not a number
            w *= spread(grid)
        return w

    def scales_finite(self, packed: np.ndarray) -> bool:
        return not (self._records(packed)["e"] == NOT_A_NUMBER).any()
