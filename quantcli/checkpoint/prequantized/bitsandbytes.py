"""bitsandbytes: 4-bit codes of a table (NF4, FP4), and rows of int8.

4 bits: the weight is one run of numbers, row after row, two to a byte and the first in the upper
half; weight = quant_map[code] * absmax[number // blocksize]. Double quantization stores absmax in
8 bits: nested_quant_map[code] * nested_absmax[block // nested_blocksize] + nested_offset. Shape and
sizes are JSON in a tensor of bytes. functional.py: dequantize_4bit, QuantState.

8 bits: weight = code * SCB[row] / 127, where the division is a product with float32(1 / 127), as in
functional.py: int8_vectorwise_dequant.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.packed import (
    Format,
    PackedWeight,
    Parts,
    Raw,
    Settings,
    Tensors,
    kind_of,
    matrix,
    part,
    setting,
)
from quantcli.checkpoint.source_tensor import SourceTensor
from quantcli.errors import BadInputError

_STATE = ".quant_state.bitsandbytes__"
_STATE_LIMIT = 4096
_OVER_127 = np.float32(7.874015718698502e-3)


@dataclass(frozen=True)
class Sizes:
    """What the JSON of a weight says of sizes; `nested_block` is of double quantization."""

    shape: tuple[int, int]
    block: int
    nested_block: int | None


@dataclass(frozen=True)
class FourBits(PackedWeight):
    """Parts: weight, absmax, quant_map, state and, if nested, nested_absmax, nested_quant_map."""

    sizes: Sizes

    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        sizes, offset = _read_state(self.parts["state"], parts.codes("state"))
        if sizes != self.sizes:
            raise parts.refuse("state", "has other sizes than the same weight in other blocks")
        w = self._numbers(parts, rows)
        columns, block = self.shape[1], sizes.block
        if columns % block == 0:  # as of all models that are met
            blocks = rows[:, None] * (columns // block) + np.arange(columns // block)
            w *= np.repeat(self._absmax(parts, blocks, offset), block, axis=1)
        else:
            numbers = rows[:, None] * columns + np.arange(columns)
            w *= self._absmax(parts, numbers // block, offset)
        return w

    def _numbers(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        """Float32 [len(rows), columns], not yet scaled."""
        values = parts.values("quant_map")
        of_byte = np.stack((np.repeat(values, 16), np.tile(values, 16)), axis=1)
        stored, columns = parts.codes("weight").reshape(-1), self.shape[1]
        begins = rows[:, None] * columns
        pairs = (begins >> 1) + np.arange(columns // 2 + 2 * (columns % 2))
        w = of_byte[stored[np.minimum(pairs, stored.size - 1)]].reshape(len(rows), -1)
        if columns % 2 == 0:
            return w
        return np.take_along_axis(w, (begins & 1) + np.arange(columns), axis=1)

    def _absmax(self, parts: Parts, blocks: np.ndarray, offset: float) -> np.ndarray:
        if self.sizes.nested_block is None:
            return parts.values("absmax", blocks)
        absmax = parts.values("nested_quant_map")[parts.codes("absmax")[blocks]]
        absmax *= parts.values("nested_absmax", blocks // self.sizes.nested_block)
        absmax += np.float32(offset)
        return absmax


@dataclass(frozen=True)
class EightBits(PackedWeight):
    """Parts: weight (I8), scb and, from older versions, format."""

    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        if "format" in self.parts and parts.codes("format").item():
            raise parts.refuse("format", "is not 0: another order than by rows")
        w = parts.codes("weight")[rows].astype(np.float32)
        w *= parts.values("scb", rows)[:, None]
        w *= _OVER_127
        return w


class BitsAndBytes(Format):
    """Either kind: what a weight is, its parts say."""

    def find(self, tensors: Tensors, raw: Raw) -> Sequence[PackedWeight]:
        found: list[PackedWeight] = []
        known: dict[tuple[str, int], Sizes] = {}
        for name, tensor in tensors.items():
            weight, ending, _ = name.partition(_STATE)
            if ending:
                kind = kind_of(weight, tensors.get(weight, tensor))
                if kind not in known:
                    known[kind], _ = _read_state(tensor, raw(name))
                found.append(_four_bits(tensors, weight, tensor, known[kind]))
            elif tensor.dtype == "I8" and name.endswith(".weight"):
                found.append(_eight_bits(tensors, name))
        return found


def _four_bits(tensors: Tensors, name: str, state: SourceTensor, sizes: Sizes) -> FourBits:
    count = math.prod(sizes.shape)
    blocks = -(-count // sizes.block)
    nested = sizes.nested_block is not None
    parts = {
        "weight": part(tensors, name, ("U8",), (-(-count // 2), 1), (1, -(-count // 2))),
        "absmax": part(tensors, f"{name}.absmax", ("U8",) if nested else ("F32",), (blocks,)),
        "quant_map": part(tensors, f"{name}.quant_map", ("F32",), (16,)),
        "state": state,
    }
    if sizes.nested_block is not None:
        above = (-(-blocks // sizes.nested_block),)
        parts["nested_absmax"] = part(tensors, f"{name}.nested_absmax", ("F32",), above)
        parts["nested_quant_map"] = part(tensors, f"{name}.nested_quant_map", ("F32",), (256,))
    return FourBits(name, sizes.shape, parts, sizes)


def _eight_bits(tensors: Tensors, name: str) -> EightBits:
    stem = name.removesuffix("weight")
    weight = matrix(tensors, name, ("I8",))
    rows, columns = weight.shape
    parts = {"weight": weight, "scb": part(tensors, f"{stem}SCB", ("F32",), (rows,))}
    if f"{stem}weight_format" in tensors:
        parts["format"] = part(tensors, f"{stem}weight_format", ("U8",), (), (1,))
    return EightBits(name, (rows, columns), parts)


def _read_state(tensor: SourceTensor, raw: np.ndarray) -> tuple[Sizes, float]:
    """Sizes and nested offset from the JSON in a tensor of bytes. Raises BadInputError."""
    try:
        if tensor.dtype != "U8" or tensor.nbytes > _STATE_LIMIT:
            raise ValueError("bytes")
        document = json.loads(raw.tobytes())
        rows, columns = document["shape"]
        nested = _size(document["nested_blocksize"]) if "nested_blocksize" in document else None
        sizes = Sizes((_size(rows), _size(columns)), _size(document["blocksize"]), nested)
        offset = float(document["nested_offset"]) if nested else 0.0
        if not math.isfinite(offset):
            raise ValueError("offset")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInputError(
            f"tensor {show(tensor.name)} is not the JSON of bitsandbytes: shape, blocksize, ..."
        ) from error
    return sizes, offset


def _size(value: Any) -> int:
    if type(value) is not int or not 0 < value < 1 << 40:
        raise ValueError("size")
    return value


def read_bitsandbytes(settings: Settings) -> BitsAndBytes:
    """quant_method bitsandbytes. Raises UnsupportedError."""
    setting(settings, "bnb_4bit_quant_storage", ("uint8", None))
    return BitsAndBytes(f"bitsandbytes {_kind(settings)}")


def _kind(settings: Mapping[str, Any]) -> str:
    if not (settings.get("load_in_4bit") or settings.get("_load_in_4bit")):
        return "int8"
    return setting(settings, "bnb_4bit_quant_type", ("nf4", "fp4"), "fp4").upper()
