"""Tensor types that GGUF files may hold and nothing here encodes: they are copied as they are."""

from typing import ClassVar, NoReturn

import numpy as np

from quantcli.tensor_types.base import Grid, TensorType


class Copied(TensorType):
    """Whole numbers, such as a table from tokens to experts, and doubles."""

    block_size = 1
    max_abs = 0.0
    quantized: ClassVar[bool] = False

    def fit(self, tile: np.ndarray, weights: np.ndarray | None) -> Grid:
        self._refuse()

    def round(self, tile: np.ndarray, grid: Grid) -> np.ndarray:
        self._refuse()

    def pack(self, codes: np.ndarray, grid: Grid) -> np.ndarray:
        self._refuse()

    def unpack(self, records: np.ndarray) -> tuple[np.ndarray, Grid]:
        self._refuse()

    def dequantize(self, codes: np.ndarray, grid: Grid) -> np.ndarray:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise NotImplementedError(f"{self.name} is not encoded")


class I8(Copied):
    name, ggml_id, record = "I8", 24, np.dtype([("x", "i1")])


class I16(Copied):
    name, ggml_id, record = "I16", 25, np.dtype([("x", "<i2")])


class I32(Copied):
    name, ggml_id, record = "I32", 26, np.dtype([("x", "<i4")])


class I64(Copied):
    name, ggml_id, record = "I64", 27, np.dtype([("x", "<i8")])


class F64(Copied):
    name, ggml_id, record = "F64", 28, np.dtype([("x", "<f8")])
