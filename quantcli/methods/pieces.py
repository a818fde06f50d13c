"""Tensors are encoded piece by piece: whole rows, cut alike whatever the number of processes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.errors import BadInputError
from quantcli.gguf_file import PartFile, Run
from quantcli.methods import rtn
from quantcli.methods.encoded import Cost, Encoded
from quantcli.model import CheckpointModel
from quantcli.tensor_types import TensorType

PIECE_WEIGHTS = 1 << 18


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
    """An output's wish for a tensor: its type, and where in which file it begins.

    copied: the source has it in that type already, byte for byte.
    """

    type: TensorType
    file: PartFile
    offset: int
    copied: bool = False


Done = tuple[Run, Cost]  # what was written for one output, and what it cost


@dataclass(frozen=True)
class RoundPieces:
    """Called with pieces: rounds each to nearest and writes it, for every output that wants it.

    `targets` are per tensor and output. Raises BadInputError for values that a type cannot hold,
    ResourceError for a full disk.
    """

    model: CheckpointModel
    targets: Sequence[Sequence[Target]]

    def __call__(self, pieces: Sequence[Piece]) -> list[list[Done]]:
        return [self._round(piece) for piece in pieces]

    def _round(self, piece: Piece) -> list[Done]:
        targets, first_row = self.targets[piece.index], piece.rows.start
        encoded: dict[str, Encoded] = {}
        for target in targets:
            if target.copied:
                encoded[target.type.name] = self._copy(piece, target.type)
        types = {t.type.name: t.type for t in targets if not t.copied}
        if types:
            w = np.atleast_2d(self.model.rows(piece.name, piece.rows))
            try:
                encoded |= rtn.quantize(w, piece.importance, types.values(), first_row=first_row)
            except BadInputError as error:
                raise BadInputError(f"{piece.label}: {error}") from None
        done = []
        for target in targets:
            part = encoded[target.type.name]
            offset = target.offset + first_row * part.packed.shape[1]
            done.append((target.file.write(offset, part.packed), part.cost))
        return done

    def _copy(self, piece: Piece, kind: TensorType) -> Encoded:
        packed = self.model.packed(piece.name, piece.rows)
        if kind.quantized and not kind.scales_finite(packed):
            raise BadInputError(
                f"{piece.label}: a scale of {kind.name} is not finite: the source is damaged"
            )
        return Encoded(packed, Cost(packed.size // kind.type_size * kind.block_size))
