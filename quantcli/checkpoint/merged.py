"""A checkpoint with adapters: its weights come merged, rows at a time, and nothing is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from quantcli.checkpoint.adapter import Adapter, Update
from quantcli.checkpoint.checkpoint import Checkpoint
from quantcli.checkpoint.files import show
from quantcli.checkpoint.source_tensor import Weights
from quantcli.errors import UnsupportedError
from quantcli.kernels.low_rank import add_low_rank


def merge(base: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """The base with each tensor W as W + sum of scale * scaling * B A, in float32.

    Raises: UnsupportedError, if two adapters replace the same tensor as a whole.
    """
    replaced: set[str] = set()
    for adapter in adapters:
        if twice := replaced & adapter.replaced.keys():
            raise UnsupportedError(f"two adapters replace the tensor {show(min(twice))}")
        replaced |= adapter.replaced.keys()
    if not adapters or base.weights is None:
        return base
    return replace(base, weights=MergedWeights(base.weights, adapters))


class MergedWeights:
    """The weights of a checkpoint after all adapters."""

    def __init__(self, base: Weights, adapters: Sequence[Adapter]) -> None:
        self._base, self._adapters = base, tuple(adapters)
        self._changed = set[str]().union(*(adapter.changed for adapter in adapters))

    @property
    def homes(self) -> Mapping[str, str]:
        """The base's file of each tensor."""
        return self._base.homes

    def raw(self, name: str) -> np.ndarray:
        """A read-only view as stored, of a tensor that no adapter changes."""
        if name in self._changed:
            raise RuntimeError(f"{name!r} is not stored as it is after merging")
        return self._base.raw(name)

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        """A float32 copy of the given rows, the same bits in whatever portions."""
        source = next((a for a in self._adapters if name in a.replaced), None)
        if source is not None:
            w = source.float32(source.replaced[name], rows)
        else:
            w = self._base.float32(name, rows)
        for adapter in self._adapters:
            if update := adapter.updates.get(name):
                b, a = factors(adapter, update, rows)
                add_low_rank(w, b, a, adapter.scale * update.scaling)
        return w


def factors(
    adapter: Adapter, update: Update, rows: slice | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Float32 [m, rank] and [rank, n] whose product is that for the given rows of the tensor."""
    if not update.embedding:
        return adapter.float32(update.b, rows), adapter.float32(update.a)
    a = adapter.columns(update.a, slice(None) if rows is None else rows)
    return a, np.ascontiguousarray(adapter.float32(update.b).T)
