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
    # Each expert has an importance of its own, which a piece must not mix.
    parts = [importance] if importance is None or importance.ndim == 1 else importance
    n_part = n_rows // len(parts)
    for number, part in enumerate(parts):
        end = (number + 1) * n_part
        for start in range(number * n_part, end, step):
            yield Piece(index, origin.name, slice(start, min(start + step, end)), part, label)
