"""Room for hidden states: memory, or past a limit a file that has no name."""

import math
import os
import tempfile

import numpy as np

from quantcli.errors import ResourceError

IN_MEMORY = 1 << 30  # bytes


def hidden_states(shape: tuple[int, ...]) -> np.ndarray:
    """Uninitialised float32 of that shape.

    Past IN_MEMORY bytes it is mapped from a nameless file in the folder for temporary files
    (TMPDIR), which vanishes with the array, whatever ends the process.

    Raises ResourceError when the disk has no room.
    """
    nbytes = 4 * math.prod(shape)
    if nbytes <= IN_MEMORY:
        return np.empty(shape, np.float32)
    try:
        with tempfile.TemporaryFile(prefix="quantcli-") as file:
            # All at once: a mapped page without room on the disk would kill the process.
            os.posix_fallocate(file.fileno(), 0, nbytes)
            return np.memmap(file, np.float32, "r+", shape=shape)
    except OSError as error:
        raise ResourceError(
            f"no room for {nbytes} bytes of hidden states in {tempfile.gettempdir()!r}"
            f" ({error.strerror}): set TMPDIR to a larger disk, or use fewer --chunks"
        ) from None
