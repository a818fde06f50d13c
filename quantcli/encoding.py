"""Rounding to nearest, streamed: pieces go to worker processes, which write them themselves.

Pieces are cut the same way whatever the number of processes, so that outputs are byte-identical;
memory is bounded by one piece per process.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice

from quantcli import blas
from quantcli.gguf_file import Writer
from quantcli.methods.encoded import Cost
from quantcli.methods.pieces import PIECE_WEIGHTS, Done, Piece, RoundPieces, Target
from quantcli.model import CheckpointModel, matrix_shape, stacked
from quantcli.parallel import in_order
from quantcli.planning import Plan
from quantcli.planning.memory import PeakMemory
from quantcli.progress import Progress
from quantcli.workers import QUEUED, Workers

# To start processes takes as long as to encode about as many weights.
WORTH_PROCESSES = 1 << 24
PIECES_SENT = 4  # at a time: fewer messages to answer


def quantize(
    plan: Plan, writers: list[Writer], memory: PeakMemory, progress: Progress
) -> list[list[Cost]]:
    """Encode every tensor in every type it is wanted in; costs per file and tensor.

    Raises:
        BadInputError: values that a type cannot hold.
        ResourceError: a full disk, a worker process that died.
    """
    costs = [[Cost()] * len(plan.origins) for _ in plan.files]
    progress.start("Quantizing", sum(4 * t.weights for t in plan.files[0].tensors))
    processes = plan.job.threads if plan.weights >= WORTH_PROCESSES else 1
    threads = 1
    read = _Read(plan)
    with ExitStack() as stack:
        encode: Callable[[Sequence[Piece]], list[list[Done]]] = _job(plan, writers)
        pids: Callable[[], Iterable[int]] = tuple
        if processes > 1:
            encode = workers = stack.enter_context(Workers(encode, processes))
            pids, threads = workers.pids, processes * QUEUED
        else:
            stack.enter_context(blas.one_thread())  # as in workers
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for batch, results in in_order(pool, encode, _batches(plan), 2 * threads):
            for piece, done in zip(batch, results, strict=True):
                for writer, cost, (run, part) in zip(writers, costs, done, strict=True):
                    writer.add(piece.name, run)
                    cost[piece.index] += part
                read.add(piece)
                progress.advance(4 * part.weights)
            memory.sample(pids)
    progress.finish()
    return costs


class _Read:
    """Frees each weight file of the hub's cache after its last tensor, if the job wants that."""

    def __init__(self, plan: Plan) -> None:
        checkpoint = plan.checkpoint
        # Evaluation reads all of them once more.
        wanted = plan.job.delete_source and plan.job.evaluate is None
        self._cached = checkpoint.cached if wanted else None
        self._origins = plan.origins
        self._homes = checkpoint.weights.homes if checkpoint.weights else {}
        self._left = Counter(self._homes[source] for o in self._origins for source in o.sources)

    def add(self, piece: Piece) -> None:
        """A piece that is done: they come in order, so after a tensor's last one it is read."""
        origin = self._origins[piece.index]
        last = piece.rows.stop == matrix_shape(origin.shape)[0]
        if self._cached is None or not last:
            return
        for source in origin.sources:
            home = self._homes[source]
            self._left[home] -= 1
            if not self._left[home]:
                self._cached.free(home)


def _job(plan: Plan, writers: list[Writer]) -> RoundPieces:
    model = CheckpointModel(plan.checkpoint, plan.origins, {})
    places = [writer.places() for writer in writers]
    targets = [
        [
            Target(tensor.type, *place[origin.name])
            for tensor, place in zip(plan.versions(index), places, strict=True)
        ]
        for index, origin in enumerate(plan.origins)
    ]
    return RoundPieces(model, targets)


def _batches(plan: Plan) -> Iterator[Sequence[Piece]]:
    together = pieces(plan)
    return iter(lambda: tuple(islice(together, PIECES_SENT)), ())


def pieces(plan: Plan) -> Iterator[Piece]:
    """Cut each tensor into runs of whole rows of about PIECE_WEIGHTS weights, in file order.

    A piece of a stack of matrices is of one of them: each has its own importance.
    """
    for index, origin in enumerate(plan.origins):
        types = [tensor.type for tensor in plan.versions(index)]
        importance = plan.importance(origin, types)
        label = f"{plan.checkpoint.id}: tensor {origin.source or origin.name!r}"
        height, n_columns = matrix_shape(origin.shape[-2:])
        step = max(1, PIECE_WEIGHTS // n_columns)
        for matrix in range(stacked(origin.shape)):
            weights = (
                importance if importance is None or importance.ndim < 2 else importance[matrix]
            )
            end = (matrix + 1) * height
            for start in range(end - height, end, step):
                rows = slice(start, min(start + step, end))
                yield Piece(index, origin.name, rows, weights, label)
