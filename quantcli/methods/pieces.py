"""Tensors are encoded piece by piece: whole rows, cut alike whatever the number of processes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.errors import BadInputError
from quantcli.gguf_file import PartFile, Run
from quantcli.methods import rtn
from quantcli.methods.encoded import Cost
from quantcli.model import Model
from quantcli.tensor_types import TensorType

PIECE_WEIGHTS = 1 << 19


@dataclass(frozen=True, eq=False)
class Piece:
    """Whole rows of the tensor `name`, whose place in the file is `index`.

    `importance` is float32 [n] or None, `label` what errors call the tensor.
    """

    index: int
    name: str
    rows: slice
    importance: np.ndarray | None
    label: str


@dataclass(frozen=True)
class Target:
    """An output's wish for a tensor: its type, and where in which file it begins."""

    type: TensorType
    file: PartFile
    offset: int


Done = tuple[Run, Cost]  # what was written for one output, and what it cost


@dataclass(frozen=True)
class RoundPiece:
    """Called with a piece: rounds it to nearest and writes it, for every output that wants it.

    `targets` are per tensor and output. Raises BadInputError for values that a type cannot hold,
    ResourceError for a full disk.
    """

    model: Model
    targets: Sequence[Sequence[Target]]

    def __call__(self, piece: Piece) -> list[Done]:
        targets, first_row = self.targets[piece.index], piece.rows.start
        types = {target.type.name: target.type for target in targets}
        w = np.atleast_2d(self.model.rows(piece.name, piece.rows))
        try:
            encoded = rtn.quantize(w, piece.importance, types.values(), first_row=first_row)
        except BadInputError as error:
            raise BadInputError(f"{piece.label}: {error}") from None
        done = []
        for target in targets:
            part = encoded[target.type.name]
            offset = target.offset + first_row * part.packed.shape[1]
            done.append((target.file.write(offset, part.packed), part.cost))
        return done
