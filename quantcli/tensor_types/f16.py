"""F16: IEEE half precision, rounded to nearest, half to even."""

import numpy as np

from quantcli.kernels.rounding import F16_MAX, from_half, to_half
from quantcli.tensor_types.families import Plain


class F16(Plain):
    name, ggml_id = "F16", 1
    record = np.dtype([("w", "<f2")])
    max_abs = F16_MAX

    def round(self, tile: np.ndarray, grid: None) -> np.ndarray:
        return to_half(tile).astype("<f2")

    def dequantize(self, codes: np.ndarray, grid: None) -> np.ndarray:
        return from_half(codes)
