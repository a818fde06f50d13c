"""How tensors are cut into pieces: alike for every number of processes and every way to read."""

from collections.abc import Iterator

from quantcli.methods.pieces import PIECE_WEIGHTS, Piece
from quantcli.model import matrix_shape, stacked
from quantcli.planning.plan import Plan


def pieces(plan: Plan) -> Iterator[Piece]:
    """The pieces of every tensor, in file order."""
    for index in range(len(plan.origins)):
        yield from pieces_of(plan, index)


def pieces_of(plan: Plan, index: int, matrix: int | None = None) -> Iterator[Piece]:
    """Runs of whole rows of about PIECE_WEIGHTS weights of the tensor at `index`.

    None has rows of two matrices that have sources or an importance of their own; matrix: of a
    stack only that one's.
    """
    origin = plan.origins[index]
    types = [tensor.type for tensor in plan.versions(index)]
    importance = plan.importance(origin, types)
    label = f"{plan.checkpoint.id}: tensor {origin.source or origin.name!r}"
    n_rows, n_columns = matrix_shape(origin.shape)
    step = max(1, PIECE_WEIGHTS // n_columns)
    own = importance is not None and importance.ndim > 1
    count = stacked(origin.shape) if own or origin.stack else 1
    n_part = n_rows // count
    for number in range(count) if matrix is None else (matrix,):
        part = importance[number] if importance is not None and own else importance
        end = (number + 1) * n_part
        for start in range(number * n_part, end, step):
            yield Piece(index, origin.name, slice(start, min(start + step, end)), part, label)
