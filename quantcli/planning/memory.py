"""Private memory: what a conversion will need, and what it did need."""

import resource
import sys
from pathlib import Path

PIECE_WEIGHTS = 1 << 20  # weights that one thread works on at a time
PIECES_WAITING = 2  # pieces done or queued beside those in the threads

BASE_BYTES = 110 << 20  # interpreter, numpy and the other packages, measured
THREAD_BYTES = 24 << 20  # scratch of the scale search, measured; the weights come on top


def peak_memory(threads: int, n_types: int, vocabulary: int) -> int:
    """Upper estimate of the private bytes of a conversion; the model's size does not enter."""
    piece = 4 * PIECE_WEIGHTS * (2 + n_types)
    return (
        BASE_BYTES + threads * THREAD_BYTES + (threads + PIECES_WAITING) * piece + 600 * vocabulary
    )


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
