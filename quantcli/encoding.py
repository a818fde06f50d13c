"""Rounding to nearest, streamed: pieces go to worker processes, which write them themselves.

Pieces are cut the same way whatever the number of processes, so that outputs are byte-identical;
memory is bounded by one piece per process.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from quantcli import blas
from quantcli.gguf_file import Run, Writer
from quantcli.methods.encoded import Cost
from quantcli.methods.pieces import Done, Piece, RoundPieces, Target
from quantcli.model import CheckpointModel, matrix_shape
from quantcli.parallel import in_order
from quantcli.planning import Plan
from quantcli.planning.cutting import pieces
from quantcli.planning.memory import PeakMemory
from quantcli.progress import Progress
from quantcli.streaming import RoundSent, stream
from quantcli.workers import QUEUED, Workers

Item = TypeVar("Item")
Result = TypeVar("Result")

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

    def account(piece: Piece, done: list[Done]) -> None:
        for cost, (_, part) in zip(costs, done, strict=True):
            cost[piece.index] += part

    progress.start("Quantizing", sum(4 * t.weights for t in plan.files[0].tensors))
    job, source = _job(plan, writers), plan.checkpoint.stream
    if source is None:
        read = _Read(plan)
        with closing(_encoded(plan, job, _batches(plan), memory)) as batches:
            for batch, results in batches:
                for piece, done in zip(batch, results, strict=True):
                    account(piece, done)
                    for writer, (run, _) in zip(writers, done, strict=True):
                        writer.add(piece.name, run)
                    read.add(piece)
                    progress.advance(4 * done[0][1].weights)
    else:
        runs: list[list[list[Run]]] = [[[] for _ in plan.origins] for _ in plan.files]
        encode = RoundSent(job, source.rows)
        with closing(_encoded(plan, encode, stream(plan, source), memory)) as streamed:
            for sent, done in streamed:
                account(sent.piece, done)
                for kept, (run, _) in zip(runs, done, strict=True):
                    kept[sent.piece.index].append(run)
                progress.advance(4 * done[0][1].weights)
        # Tensors came in the source's order; the output's files take note of them in theirs.
        for writer, per_tensor in zip(writers, runs, strict=True):
            for origin, kept_runs in zip(plan.origins, per_tensor, strict=True):
                for run in kept_runs:
                    writer.add(origin.name, run)
    progress.finish()
    return costs


def _encoded(
    plan: Plan, encode: Callable[[Item], Result], items: Iterable[Item], memory: PeakMemory
) -> Generator[tuple[Item, Result]]:
    """encode(item) for all items, in their order, in as many processes as are worth it."""
    processes = plan.job.threads if plan.weights >= WORTH_PROCESSES else 1
    threads = 1
    with ExitStack() as stack:
        pids: Callable[[], Iterable[int]] = tuple
        if processes > 1:
            encode = workers = stack.enter_context(Workers(encode, processes))
            pids, threads = workers.pids, processes * QUEUED
        else:
            stack.enter_context(blas.one_thread())  # as in workers
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for pair in in_order(pool, encode, items, 2 * threads):
            yield pair
            memory.sample(pids)


class _Read:
    """Frees each weight file of the hub's cache after its last tensor, if the job wants that."""

    def __init__(self, plan: Plan) -> None:
        checkpoint = plan.checkpoint
        # Evaluation reads all of them once more.
        wanted = plan.job.delete_source and plan.job.evaluate is None
        self._cached = checkpoint.cached if wanted else None
        self._origins = plan.origins
        self._homes = checkpoint.weights.homes if checkpoint.weights else {}
        self._tensors = checkpoint.tensors
        self._left = Counter(
            home for o in self._origins for source in o.sources for home in self._files(source)
        )

    def add(self, piece: Piece) -> None:
        """A piece that is done: they come in order, so after a tensor's last one it is read."""
        origin = self._origins[piece.index]
        last = piece.rows.stop == matrix_shape(origin.shape)[0]
        if self._cached is None or not last:
            return
        for source in origin.sources:
            for home in self._files(source):
                self._left[home] -= 1
                if not self._left[home]:
                    self._cached.free(home)

    def _files(self, source: str) -> set[str]:
        if not self._homes:
            return set()
        return {self._homes[name] for name in self._tensors[source].parts or (source,)}


def _job(plan: Plan, writers: list[Writer]) -> RoundPieces:
    origins = plan.origins
    if plan.checkpoint.stream is not None:  # what it sends is turned already
        origins = [replace(origin, transposed=False) for origin in origins]
    model = CheckpointModel(plan.checkpoint, origins, {})
    places = [writer.places() for writer in writers]
    targets = [
        [
            Target(tensor.type, *place[origin.name], plan.is_copied(tensor))
            for tensor, place in zip(plan.versions(index), places, strict=True)
        ]
        for index, origin in enumerate(plan.origins)
    ]
    return RoundPieces(model, targets)


def _batches(plan: Plan) -> Iterator[Sequence[Piece]]:
    together = pieces(plan)
    return iter(lambda: tuple(islice(together, PIECES_SENT)), ())
