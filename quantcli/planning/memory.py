"""Private memory: what a conversion will need, and what it did need."""

import resource
import sys
from pathlib import Path

PIECE_WEIGHTS = 1 << 20  # weights that one thread works on at a time
PIECES_WAITING = 2  # pieces done or queued beside those in the threads

# Measured upper bounds of private memory.
BASE_BYTES = 64 << 20  # interpreter, numpy and the other packages
THREAD_BYTES = 16 << 20  # a piece as float32, decoded again, and the search's scratch
PARSING_BYTES = 1700  # per token, while the tokenizer is read
TOKEN_BYTES = 300  # per token, kept as metadata


def peak_memory(threads: int, packed_bytes: int, vocabulary: int) -> int:
    """Upper estimate of the private bytes of a conversion; the model's size does not enter.

    packed_bytes: of one piece in all types that are written at once.
    """
    pieces = (threads + PIECES_WAITING) * packed_bytes
    working = threads * THREAD_BYTES + pieces + vocabulary * TOKEN_BYTES
    return BASE_BYTES + max(working, vocabulary * PARSING_BYTES)


class PeakMemory:
    """The largest private (not file-backed) memory seen at the moments of sampling."""

    def __init__(self) -> None:
        self.peak = 0
        self.sample()

    def sample(self) -> None:
        """Look at the memory of this process now."""
        self.peak = max(self.peak, _private_bytes())


def _private_bytes() -> int:
    """Resident minus file-backed pages on Linux; elsewhere the peak resident size."""
    try:
        resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * resource.getpagesize()
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
