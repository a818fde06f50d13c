"""How tensors are cut into pieces: alike for every number of processes and every way to read."""

from collections.abc import Iterator

from quantcli.methods.pieces import PIECE_WEIGHTS, Piece
from quantcli.model import matrix_shape
from quantcli.planning.plan import Plan


def pieces(plan: Plan) -> Iterator[Piece]:
    """The pieces of every tensor, in file order."""
    for index in range(len(plan.origins)):
        yield from pieces_of(plan, index)


def pieces_of(plan: Plan, index: int) -> Iterator[Piece]:
    """Runs of whole rows of about PIECE_WEIGHTS weights of the tensor at `index`."""
    origin = plan.origins[index]
    types = [tensor.type for tensor in plan.versions(index)]
    importance = plan.importance(origin, types)
    label = f"{plan.checkpoint.id}: tensor {origin.source or origin.name!r}"
    n_rows, n_columns = matrix_shape(origin.shape)
    step = max(1, PIECE_WEIGHTS // n_columns)
    for start in range(0, n_rows, step):
        rows = slice(start, min(start + step, n_rows))
        yield Piece(index, origin.name, rows, importance, label)
