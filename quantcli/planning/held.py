"""Which tensors of a hub stream are held as a whole, since the output wants another order."""

from collections.abc import Mapping, Sequence

import numpy as np

from quantcli.architectures import OutputTensor
from quantcli.checkpoint.source_tensor import SourceTensor


def first_wanted(order: np.ndarray) -> np.ndarray:
    """int64 [n]: the first source row that output rows i and on need; they need order[i:]."""
    return np.minimum.accumulate(order[::-1])[::-1]


def is_whole(origin: OutputTensor) -> bool:
    """True where over half of a tensor would wait for the rest: fused q, k, v, or a transpose.

    A bias whose values move is one row, so that all of it waits.
    """
    if origin.transposed or origin.rows is None:
        return origin.transposed
    if len(origin.shape) == 1:
        return True
    waiting = np.maximum.accumulate(origin.rows) - first_wanted(origin.rows) + 1
    return bool(2 * waiting.max() > len(origin.rows))


def held_bytes(origins: Sequence[OutputTensor], tensors: Mapping[str, SourceTensor]) -> int:
    """The size of the largest of them; they come one after the other."""
    whole = [o.source for o in origins if o.source is not None and is_whole(o)]
    return max((tensors[name].nbytes for name in whole), default=0)
