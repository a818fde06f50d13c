"""FP8: E4M3 numbers times a scale per tensor, per row, or per block of 128 x 128.

As DeepSeek-V3, Qwen3-FP8 (`weight_scale_inv`, which multiplies despite its name) and
Llama-3.1-405B-FP8 (fbgemm) store it; transformers.integrations.finegrained_fp8 computes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.floats import E4M3, FLOATS
from quantcli.checkpoint.prequantized.grid import Grid, Shape, grid_of
from quantcli.checkpoint.prequantized.packed import (
    Format,
    PackedWeight,
    Parts,
    Raw,
    Settings,
    Tensors,
    matrix,
    part,
    setting,
)
from quantcli.errors import BadInputError

_SCALES = ("weight_scale_inv", "weight_scale")
_SCALE_DTYPES = (*FLOATS, "F8_E8M0")


@dataclass(frozen=True)
class Fp8Weight(PackedWeight):
    """Parts: weight (F8_E4M3) and scale. The product is rounded to float32, as its runtimes do."""

    grid: Grid

    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        w = e4m3(parts, "weight", rows)
        w *= self.grid.spread(parts, "scale", rows, self.shape[1])
        return w


def e4m3(parts: Parts, role: str, rows: np.ndarray) -> np.ndarray:
    """Float32 of some rows of F8_E4M3. Raises BadInputError for NaN, which no weight is."""
    found = E4M3[parts.codes(role)[rows]]
    if np.isnan(found).any():
        row, column = np.argwhere(np.isnan(found))[0]
        raise parts.refuse(role, f"holds nan at row {rows[row]}, column {column}")
    return found


@dataclass(frozen=True)
class Fp8(Format):
    """`block`: of a grid of scales, None for one scale per tensor or row."""

    block: Shape | None

    def find(self, tensors: Tensors, raw: Raw) -> Sequence[PackedWeight]:
        return [
            fp8_weight(tensors, name, self.block)
            for name, tensor in tensors.items()
            if tensor.dtype == "F8_E4M3" and name.endswith(".weight")
        ]


def fp8_weight(tensors: Tensors, name: str, block: Shape | None) -> Fp8Weight:
    """The weight `name` and its scale. Raises BadInputError, UnsupportedError."""
    stem = name.removesuffix("weight")
    weight = matrix(tensors, name, ("F8_E4M3",))
    shape = weight.shape[0], weight.shape[1]
    known = [stem + suffix for suffix in _SCALES if stem + suffix in tensors]
    scale = part(tensors, known[0] if known else stem + _SCALES[block is None], _SCALE_DTYPES)
    return Fp8Weight(name, shape, {"weight": weight, "scale": scale}, grid_of(scale, shape, block))


def read_fp8(settings: Settings) -> Fp8:
    """quant_method fp8. Raises UnsupportedError, BadInputError."""
    setting(settings, "fmt", ("e4m3",), "e4m3")
    block = read_block(settings.get("weight_block_size"))
    title = "FP8" if block is None else f"FP8 in blocks of {block[0]}x{block[1]}"
    return Fp8(title, block)


def read_fbgemm(settings: Settings) -> Fp8:
    """quant_method fbgemm_fp8: one scale per row."""
    return Fp8("FP8", None)


def read_block(value: object) -> Shape | None:
    """Rows and columns that share a scale. Raises BadInputError."""
    if value is None:
        return None
    if (
        isinstance(value, list)
        and len(value) == 2
        and all(type(size) is int and 0 < size < 1 << 40 for size in value)
    ):
        return value[0], value[1]
    raise BadInputError(
        f"quantization_config in config.json: the block {show(value)} is not [rows, columns]"
    )
