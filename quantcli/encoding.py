"""Rounding to nearest, streamed: pieces go to worker processes, which write them themselves.

Pieces are cut the same way whatever the number of processes, so that outputs are byte-identical;
memory is bounded by one piece per process.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from quantcli import blas
from quantcli.gguf_file import Writer
from quantcli.methods.encoded import Cost
from quantcli.methods.pieces import PIECE_WEIGHTS, Done, Piece, RoundPiece, Target
from quantcli.model import CheckpointModel, matrix_shape
from quantcli.parallel import in_order
from quantcli.planning import Plan
from quantcli.planning.memory import PeakMemory
from quantcli.progress import Progress
from quantcli.workers import QUEUED, Workers

# To start processes takes as long as to encode about as many weights.
WORTH_PROCESSES = 1 << 24


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
    with ExitStack() as stack:
        encode: Callable[[Piece], list[Done]] = _job(plan, writers)
        pids: Callable[[], Iterable[int]] = tuple
        if processes > 1:
            encode = workers = stack.enter_context(Workers(encode, processes))
            pids, threads = workers.pids, processes * QUEUED
        else:
            stack.enter_context(blas.one_thread())  # as in workers
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for piece, done in in_order(pool, encode, pieces(plan), 2 * threads):
            for writer, cost, (run, part) in zip(writers, costs, done, strict=True):
                writer.add(piece.name, run)
                cost[piece.index] += part
            memory.sample(pids)
            progress.advance(4 * part.weights)
    progress.finish()
    return costs


def _job(plan: Plan, writers: list[Writer]) -> RoundPiece:
    model = CheckpointModel(plan.checkpoint, plan.origins, {})
    places = [writer.places() for writer in writers]
    targets = [
        [
            Target(tensor.type, *place[origin.name])
            for tensor, place in zip(plan.versions(index), places, strict=True)
        ]
        for index, origin in enumerate(plan.origins)
    ]
    return RoundPiece(model, targets)


def pieces(plan: Plan) -> Iterator[Piece]:
    """Cut each tensor into runs of whole rows of about PIECE_WEIGHTS weights, in file order."""
    for index, origin in enumerate(plan.origins):
        types = [tensor.type for tensor in plan.versions(index)]
        importance = plan.importance(origin, types)
        label = f"{plan.checkpoint.id}: tensor {origin.source or origin.name!r}"
        n_rows, n_columns = matrix_shape(origin.shape)
        step = max(1, PIECE_WEIGHTS // n_columns)
        for start in range(0, n_rows, step):
            rows = slice(start, min(start + step, n_rows))
            yield Piece(index, origin.name, rows, importance, label)
