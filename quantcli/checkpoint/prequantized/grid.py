"""Scales laid over a matrix: one for all, one per row, per group of a row, or per block."""

from dataclasses import dataclass

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.packed import Parts
from quantcli.checkpoint.source_tensor import SourceTensor
from quantcli.errors import BadInputError

Shape = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """`shape` scales, each for a block of `block` (rows, columns); the last ones may be cut off."""

    shape: Shape
    block: Shape

    def spread(self, parts: Parts, role: str, rows: np.ndarray, columns: int) -> np.ndarray:
        """Float32 scale of each weight of the rows with these numbers, or what broadcasts to that.

        Raises: BadInputError unless all are finite.
        """
        chosen = parts.values(role, rows // self.block[0], self.shape)
        if self.shape[1] == 1:
            return chosen
        return np.repeat(chosen, self.block[1], axis=1)[:, :columns]


def grid_of(scale: SourceTensor, shape: Shape, block: Shape | None = None) -> Grid:
    """How the tensor `scale` lies over a matrix of `shape`, where `block` is a grid's block.

    Raises: BadInputError for any other number of scales.
    """
    rows, columns = shape
    if block is not None:
        grid = (-(-rows // block[0]), -(-columns // block[1]))
        if scale.shape == grid:
            return Grid(grid, block)
    elif scale.shape in ((), (1,), (1, 1)):
        return Grid((1, 1), shape)
    elif scale.shape in ((rows,), (rows, 1)):
        return Grid((rows, 1), (1, columns))
    expected = f"{grid}" if block is not None else f"(), (1,) or ({rows}, 1)"
    raise BadInputError(
        f"tensor {show(scale.name)} has shape {scale.shape} instead of {expected}"
        f" for a weight of {shape}"
    )
