"""Weights of compressed-tensors that are integers: (code - zero) * scale."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.bits import take, unpack
from quantcli.checkpoint.prequantized.floats import FLOATS
from quantcli.checkpoint.prequantized.grid import Grid, Shape, grid_of
from quantcli.checkpoint.prequantized.packed import PackedWeight, Parts, Raw, Tensors, matrix, part
from quantcli.errors import BadInputError


@dataclass(frozen=True)
class Int8Weight(PackedWeight):
    """Parts: weight (I8), scale and, if asymmetric, zero (I8); both lie on `grid`."""

    grid: Grid

    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        w = parts.codes("weight")[rows].astype(np.float32)
        if "zero" in self.parts:
            w -= self.grid.spread(parts, "zero", rows, self.shape[1])
        w *= self.grid.spread(parts, "scale", rows, self.shape[1])
        return w


def int8_weight(tensors: Tensors, name: str, block: Shape | None, asymmetric: bool) -> Int8Weight:
    """The weight `name`, its scales in blocks of `block`, None for one per tensor or row.

    Raises: BadInputError, UnsupportedError.
    """
    weight = matrix(tensors, name, ("I8",))
    shape = weight.shape[0], weight.shape[1]
    scale = part(tensors, f"{name}_scale", FLOATS)
    parts = {"weight": weight, "scale": scale}
    if asymmetric:
        parts["zero"] = part(tensors, f"{name}_zero_point", ("I8",), scale.shape)
    return Int8Weight(name, shape, parts, grid_of(scale, shape, block))


@dataclass(frozen=True)
class PackedIntegers(PackedWeight):
    """Parts: weight, scale, shape; zero if asymmetric, g_idx with act-order.

    Codes and zeros both are stored with 2^(bits - 1) added.
    """

    bits: int
    group: int

    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        if tuple(parts.codes("shape").tolist()) != self.shape:
            raise parts.refuse("shape", "differs from that of the same weight in other blocks")
        groups = self._groups(parts)
        w = unpack(parts.codes("weight")[rows], self.bits, self.shape[1]).astype(np.float32)
        if "zero" in self.parts:
            zeros = take(parts.codes("zero").T, self.bits, rows).T
            w -= zeros.astype(np.float32)[:, groups]
        else:
            w -= np.float32(1 << (self.bits - 1))
        w *= parts.values("scale", rows)[:, groups]
        return w

    def _groups(self, parts: Parts) -> np.ndarray:
        """Of each column. Raises BadInputError for a group that is not there."""
        if "g_idx" in self.parts:
            return parts.groups("g_idx", self.parts["scale"].shape[1])
        return np.arange(self.shape[1]) // self.group


def packed_integers(
    tensors: Tensors,
    name: str,
    shape: Shape,
    bits: int,
    group: int | None,
    optional: Collection[str],
) -> PackedIntegers:
    """The weight `name` of `shape`, in groups of `group` columns, None for one per row.

    `optional`: which of zero_point and g_idx it has. Raises: BadInputError, UnsupportedError.
    """
    rows, columns = shape
    size = group or columns
    if columns % size:
        raise BadInputError(
            f"tensor {show(name)} has {columns} columns, which groups of {size} do not fill"
        )
    groups, words = columns // size, -(-columns * bits // 32)
    parts = {
        "weight": part(tensors, f"{name}_packed", ("I32",), (rows, words)),
        "scale": part(tensors, f"{name}_scale", FLOATS, (rows, groups)),
        "shape": part(tensors, f"{name}_shape", ("I64",), (2,)),
    }
    if "zero_point" in optional:
        zeros = (-(-rows * bits // 32), groups)
        parts["zero"] = part(tensors, f"{name}_zero_point", ("I32",), zeros)
    if "g_idx" in optional:
        parts["g_idx"] = part(tensors, f"{name}_g_idx", ("I32",), (columns,))
    return PackedIntegers(name, shape, parts, bits, size)


def read_shape(tensors: Tensors, name: str, raw: Raw) -> Shape:
    """What the tensor `name` (two I64) says. Raises BadInputError, UnsupportedError."""
    part(tensors, name, ("I64",), (2,))
    rows, columns = raw(name).tolist()
    if not (0 < rows < 1 << 40 and 0 < columns < 1 << 40):
        raise BadInputError(f"tensor {show(name)} holds {rows} and {columns}, which is no shape")
    return rows, columns
