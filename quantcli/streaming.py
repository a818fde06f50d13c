"""A hub model that is on no disk: pieces go to the processes that encode with their rows.

Tensors come in the order of the source's files. A piece is sent as soon as all its rows have come:
where rows change their order within a head, that takes at most the rows of a head. Where they move
further, or become columns, the tensor is held as a whole (see planning.held).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quantcli.architectures import OutputTensor
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
    """All pieces of the output, those of a tensor in order; at the end the source is verified.

    Raises: BadInputError (heads that differ), and as HubStream.tensors.
    """
    origins = plan.origins
    places = {o.source: index for index, o in enumerate(origins) if o.source is not None}
    heads = {name for o in origins if o.must_equal for name in (o.source, o.must_equal)}
    digests: dict[str | None, bytes] = {}
    for index, origin in enumerate(origins):
        if origin.source is None:
            yield from (Sent(piece, None) for piece in pieces_of(plan, index))
    for tensor, read in source.tensors():
        if tensor.name not in places:
            continue
        sha = hashlib.sha256()
        index = places[tensor.name]
        cut = _whole if is_whole(origins[index]) else _pieces
        for sent, stored in cut(plan, index, tensor.dtype, read):
            if tensor.name in heads:
                sha.update(stored)
            yield sent
        digests[tensor.name] = sha.digest()
    for origin in origins:
        if origin.must_equal and digests[origin.source] != digests[origin.must_equal]:
            raise heads_differ(plan, origin)


def heads_differ(plan: Plan, origin: OutputTensor) -> BadInputError:
    """The error for an output head that is not the embedding that it is said to be."""
    return BadInputError(
        f"{plan.checkpoint.id}: config.json says tie_word_embeddings, but "
        f"{origin.source!r} differs from {origin.must_equal!r}; correct config.json"
    )


def _pieces(plan: Plan, index: int, dtype: str, read: "Read") -> Iterator[tuple[Sent, Buffer]]:
    """Each piece of a tensor, and the bytes that were read for it."""
    origin = plan.origins[index]
    n_rows, n_columns = matrix_shape(origin.shape)
    order = np.arange(n_rows) if origin.rows is None else origin.rows
    still_wanted = first_wanted(order)
    stored = NUMPY_DTYPES[dtype]
    window, first = np.empty((0, n_columns), stored), 0
    for piece in pieces_of(plan, index):
        wanted = order[piece.rows]
        window = window[still_wanted[piece.rows.start] - first :]
        first = int(still_wanted[piece.rows.start])
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
