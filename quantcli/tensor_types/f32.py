"""F32: the weight itself."""

import numpy as np

from quantcli.tensor_types.families import Plain


class F32(Plain):
    name, ggml_id = "F32", 0
    record = np.dtype([("w", "<f4")])
    max_abs = float(np.finfo(np.float32).max)

    def round(self, tile: np.ndarray, grid: None) -> np.ndarray:
        return tile

    def dequantize(self, codes: np.ndarray, grid: None) -> np.ndarray:
        return codes
