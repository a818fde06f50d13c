"""One tensor of a source, and where the values of all come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

WEIGHT_DTYPES = ("F32", "F16", "BF16")
READABLE = (*WEIGHT_DTYPES, "MXFP4")  # of a checkpoint: the last one as it is


@dataclass(frozen=True, slots=True)
class SourceTensor:
    """One tensor of a source: `shape` in numpy order, `nbytes` as stored.

    `parts` are the names it is stored under, where these are others than its own.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    parts: tuple[str, ...] = ()


class Weights(Protocol):
    """Where the values come from; each kind of source file brings its own.

    `homes`: the file of each stored tensor.
    """

    @property
    def homes(self) -> Mapping[str, str]: ...

    def raw(self, name: str) -> np.ndarray:
        """Return a read-only view of a tensor as stored."""

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        """Return a float32 copy of some rows of a tensor."""
