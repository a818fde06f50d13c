"""A hub model that is on no disk: pieces go to the processes that encode with their rows.

Tensors come in the order of the source's files, the experts of a stack each at a time of its own.
A piece is sent as soon as all its rows have come: where rows change their order within a head, that
takes at most the rows of a head. Where they move further, or become columns, the tensor is held as
a whole (see planning.held).
"""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from quantcli.architectures import OutputTensor
from quantcli.checkpoint import SourceTensor
from quantcli.checkpoint.fused import parts_of
from quantcli.checkpoint.safetensors import NUMPY_DTYPES
from quantcli.errors import BadInputError
from quantcli.methods.pieces import Done, Piece, RoundPieces
from quantcli.model import matrix_shape
from quantcli.planning import Plan
from quantcli.planning.cutting import pieces_of
from quantcli.planning.held import first_wanted, is_whole

if TYPE_CHECKING:  # the hub's client takes its time to import
    from quantcli.checkpoint.hub_stream import HubStream, Read, Rows


_CHUNK = 1 << 20  # bytes

Buffer = bytes | memoryview


@dataclass(frozen=True, eq=False)
class Sent:
    """A piece and its rows as stored, in the order of the output; None where it has no source."""

    piece: Piece
    rows: np.ndarray | None


@dataclass(frozen=True)
class RoundSent:
    """Called with what was sent, one at a time in each process: as RoundPieces."""

    job: RoundPieces
    rows: "Rows"  # of the weights that the job reads

    def __call__(self, sent: Sent) -> list[Done]:
        self.rows.value = sent.rows
        (done,) = self.job([sent.piece])
        return done


def stream(plan: Plan, source: "HubStream") -> Iterator[Sent]:
    """All pieces of the output, those of a matrix in order; at the end the source is verified.

    Raises: BadInputError (heads that differ), and as HubStream.tensors.
    """
    origins = plan.origins
    places: dict[str, tuple[int, int | None]] = {}
    for index, origin in enumerate(origins):
        if origin.source is not None:
            places[origin.source] = index, None
        places |= {name: (index, matrix) for matrix, name in enumerate(origin.stack)}
    heads = {name for o in origins if o.must_equal for name in (o.source, o.must_equal)}
    digests: dict[str | None, bytes] = {}
    for index, origin in enumerate(origins):
        if not origin.sources:
            yield from (Sent(piece, None) for piece in pieces_of(plan, index))
    for tensor, read in _wanted(source, places):
        sha = hashlib.sha256()
        index, matrix = places[tensor.name]
        cut = _whole if is_whole(origins[index]) else partial(_pieces, matrix=matrix)
        for sent, stored in cut(plan, index, tensor.dtype, read):
            if tensor.name in heads:
                sha.update(stored)
            yield sent
        if tensor.name in heads:
            digests[tensor.name] = sha.digest()
    for origin in origins:
        if origin.must_equal and digests[origin.source] != digests[origin.must_equal]:
            raise heads_differ(plan, origin)


def _wanted(source: "HubStream", places: Collection[str]) -> Iterator[tuple[SourceTensor, "Read"]]:
    """The tensors of the source that are in `places`; of experts stored together single ones."""
    for stored, read in source.tensors():
        if stored.name in places:
            yield stored, read
            continue
        parts = parts_of(stored)
        for part in parts if any(part.name in places for part in parts) else ():
            if part.name in places:
                yield part, read
            else:
                read(part.nbytes)


def heads_differ(plan: Plan, origin: OutputTensor) -> BadInputError:
    """The error for an output head that is not the embedding that it is said to be."""
    return BadInputError(
        f"{plan.checkpoint.id}: config.json says tie_word_embeddings, but "
        f"{origin.source!r} differs from {origin.must_equal!r}; correct config.json"
    )


def _pieces(
    plan: Plan, index: int, dtype: str, read: "Read", matrix: int | None
) -> Iterator[tuple[Sent, Buffer]]:
    """Each piece of a tensor, or of a matrix of a stack, and the bytes that were read for it."""
    origin = plan.origins[index]
    n_rows, n_columns = matrix_shape(origin.shape if matrix is None else origin.shape[1:])
    before = (matrix or 0) * n_rows
    order = np.arange(n_rows) if origin.rows is None else origin.rows
    still_wanted = first_wanted(order)
    stored = NUMPY_DTYPES[dtype]
    window, first = np.empty((0, n_columns), stored), 0
    for piece in pieces_of(plan, index, matrix):
        start, stop = piece.rows.start - before, piece.rows.stop - before
        wanted = order[start:stop]
        window = window[still_wanted[start] - first :]
        first = int(still_wanted[start])
        missing = max(0, int(wanted.max()) + 1 - first - len(window))
        data = read(missing * n_columns * stored.itemsize)
        new = np.frombuffer(data, stored).reshape(missing, n_columns)
        window = np.concatenate([window, new])
        rows = window[wanted - first]
        yield Sent(piece, rows if len(origin.shape) > 1 else rows[0]), data


def _whole(plan: Plan, index: int, dtype: str, read: "Read") -> Iterator[tuple[Sent, Buffer]]:
    """The same of a tensor of which no piece is complete before nearly all has come."""
    origin = plan.origins[index]
    shape = origin.shape[::-1] if origin.transposed else origin.shape
    held = np.empty(shape, NUMPY_DTYPES[dtype])
    flat = held.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _CHUNK):
        part = flat[start : start + _CHUNK]
        part[:] = np.frombuffer(read(len(part)), np.uint8)
    w = held.T if origin.transposed else held
    for piece in pieces_of(plan, index):
        chosen = slice(None) if held.ndim == 1 else piece.rows
        rows = w[chosen] if origin.rows is None else w[origin.rows[chosen]]
        yield Sent(piece, np.ascontiguousarray(rows)), b"" if piece.rows.start else flat.data
