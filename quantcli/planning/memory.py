"""Private memory: what a conversion will need, and what it did need."""

import math
import re
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from quantcli.methods.gptq import STRIP
from quantcli.methods.pieces import PIECE_WEIGHTS
from quantcli.transformer.block import TILE_TOKENS
from quantcli.transformer.scratch import IN_MEMORY
from quantcli.workers import QUEUED

INTERVAL = 0.2  # seconds between two looks at the memory in use

# Measured upper bounds of private memory.
BASE_BYTES = 64 << 20  # interpreter, numpy and the other packages
SHARED_BYTES = 24 << 20  # the same in the processes that encode, who share it
WORKER_BYTES = 18 << 20  # of each: a piece as float32, decoded again, and the search's scratch
WEIGHTED_BYTES = 8 << 20  # what importance adds to the scratch
PARSING_BYTES = 1700  # per token, while the tokenizer is read
TOKEN_BYTES = 300  # per token, kept as metadata
NOTE_BYTES = 200
SUM_BYTES = 12  # per column of an expert: a sum of squares, and what it becomes in the imatrix
HOLES = 5 / 4  # what experts see are small arrays of all sizes, which leave holes in the heap
LARGEST_BYTES = 34 / 32  # per weight, of Q8_0
STRIP_ARRAYS = 6  # of float32, in which GPTQ works on a strip of rows


def peak_memory(threads: int, packed_bytes: int, vocabulary: int, weighted: bool) -> int:
    """Upper estimate of the private bytes of a conversion; the model's size does not enter.

    packed_bytes: of one piece in all types that are written at once; weighted: by an imatrix.
    """
    worker = WORKER_BYTES + (WEIGHTED_BYTES if weighted else 0) + packed_bytes
    working = SHARED_BYTES + threads * worker + vocabulary * TOKEN_BYTES
    return BASE_BYTES + max(working, vocabulary * PARSING_BYTES)


def calibration_memory(
    shapes: Mapping[str, tuple[int, ...]],
    tokens: int,
    threads: int,
    vocabulary: int,
    *,
    experts_used: int = 0,
) -> int:
    """Upper estimate of the private bytes of running `tokens` through a model of these shapes.

    One block in float32, all its experts included, hidden states, and for each thread a tile: its
    widest activations while it runs, its inputs of linears until they have been looked at. A token
    is an input of as many experts as it sees; sums of what each expert saw are kept to the end.
    """
    blocks: Counter[str] = Counter()
    for name, shape in shapes.items():
        if name.startswith("blk."):
            blocks[name.split(".")[1]] += math.prod(shape)
    n_embd = shapes["token_embd.weight"][-1]
    widest = max(max(shape) for name, shape in shapes.items() if name.startswith("blk."))
    stacks = [shape for shape in shapes.values() if len(shape) == 3]
    seen = experts_used * (n_embd + max((shape[-1] for shape in stacks), default=0))
    routed = math.ceil(HOLES * seen)
    tiles = (threads + 1) * (3 * n_embd + widest + routed) + threads * 3 * widest
    hidden = min(4 * tokens * n_embd, IN_MEMORY)
    working = 4 * max(blocks.values()) + hidden + 4 * TILE_TOKENS * tiles
    working += SUM_BYTES * sum(count * n for count, _, n in stacks)
    return BASE_BYTES + vocabulary * TOKEN_BYTES + working


def measuring_memory(shapes: Mapping[str, tuple[int, ...]], tokens: int) -> int:
    """Upper estimate of what measuring types adds to calibration.

    The Hessians of a block, and for gradients the hidden states of `tokens` before each block.
    """
    found = [n_embd := shapes["token_embd.weight"][-1], n_embd]
    found += [shapes[f"blk.0.{site}.weight"][-1] for site in ("attn_output", "ffn_down")]
    hessians = 4 * (sum(n * n for n in found) + 2 * max(found) ** 2)
    n_block = sum(name.endswith(".attn_output.weight") for name in shapes)
    states = 4 * tokens * n_embd * (n_block + 1)
    return hessians + min(states, IN_MEMORY)


def sequence_memory(
    shapes: Mapping[str, tuple[int, ...]], tokens: int, outputs: int, threads: int
) -> int:
    """Upper estimate of what quantizing in sequence adds to calibration.

    For the float model and each output hidden states, the input of a site and of the next one; of
    each output the linears of a site; of the site that sees most inputs H, the drift from the float
    model, two factors and room to make them; for each thread a strip of rows. With experts: what
    goes into one and comes out of it, what came out of all so far, and their linears, encoded.
    """
    block = {name: shape for name, shape in shapes.items() if name.startswith("blk.0.")}
    widest = max(shape[-1] for shape in block.values())
    site = 2 * max(math.prod(shape[-2:]) for shape in block.values())
    rows = min(max(math.prod(shape[-2:-1]) for shape in block.values()), threads * STRIP)
    n_embd = shapes["token_embd.weight"][-1]
    kept, once = [n_embd, widest, widest], list[int]()
    stacks = [math.prod(shape) for shape in block.values() if len(shape) == 3]
    if stacks:
        kept += [n_embd, n_embd, n_embd, widest]
        once = [widest, widest]
    states = sum(min(4 * tokens * n, IN_MEMORY) for n in (1 + outputs) * kept + once)
    packed = math.ceil((outputs * sum(stacks) + max(stacks, default=0)) * LARGEST_BYTES)
    return states + packed + 4 * (outputs * site + 5 * widest**2 + STRIP_ARRAYS * rows * widest)


def stream_memory(threads: int, weights: int) -> int:
    """Upper estimate of what a stream adds: connection, rows of a head, pieces on their way.

    weights: to be encoded, of whose pieces a note is kept until the end.
    """
    notes = weights // PIECE_WEIGHTS * NOTE_BYTES
    return (16 << 20) + 2 * QUEUED * threads * 2 * 4 * PIECE_WEIGHTS + notes


class PeakMemory:
    """The largest private (not file-backed) memory seen at the moments of sampling."""

    def __init__(self) -> None:
        self.peak = 0
        self._next = 0.0
        self.sample()

    def sample(self, workers: Callable[[], Iterable[int]] = tuple) -> None:
        """Look at the memory of this process and of `workers` (their pids) now.

        It takes some time, so it happens at most every INTERVAL seconds.
        """
        if time.monotonic() >= self._next:
            processes = ("self", *map(str, workers()))
            self.peak = max(self.peak, sum(map(_private_bytes, processes)) or _peak_resident())
            self._next = time.monotonic() + INTERVAL

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look at the memory of this process all the while."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(INTERVAL):
                self.sample()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _private_bytes(process: str) -> int:
    """Memory behind no file, of pages shared with other processes a share; 0 if not known."""
    with suppress(OSError):
        found = re.search(r"Pss_Anon: *(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text())
        return 1024 * int(found[1]) if found else 0
    return 0


def _peak_resident() -> int:
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
