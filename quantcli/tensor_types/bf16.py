"""BF16: the upper half of a float32, rounded to nearest, half to even."""

import numpy as np

from quantcli.tensor_types.families import Plain

EXPONENT = np.uint16(0x7F80)  # all ones in infinities and NaNs


class BF16(Plain):
    name, ggml_id = "BF16", 30
    record = np.dtype([("w", "<u2")])
    max_abs = float.fromhex("0x1.fep127")

    def round(self, tile: np.ndarray, grid: None) -> np.ndarray:
        bits = tile.view(np.uint32)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return ((bits + half) >> np.uint32(16)).astype("<u2")

    def dequantize(self, codes: np.ndarray, grid: None) -> np.ndarray:
        return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)

    def scales_finite(self, packed: np.ndarray) -> bool:
        return bool(((self._records(packed)["w"] & EXPONENT) != EXPONENT).all())
