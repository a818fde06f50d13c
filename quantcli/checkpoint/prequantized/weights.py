"""The layer between stored tensors and a Checkpoint: packed weights under their usual names."""

from collections.abc import Mapping

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.packed import Format, PackedWeight, Parts, Tensors
from quantcli.checkpoint.source_tensor import SourceTensor, Weights
from quantcli.errors import BadInputError

# Weights that are decoded at a time: bounds what lies beside the result.
CHUNK_WEIGHTS = 1 << 16


class PackedWeights:
    """What `format` makes of the `stored` tensors of `weights`.

    `tensors` are those to be seen: packed weights as F32, other tensors as they are.
    """

    def __init__(self, format: Format, stored: Tensors, weights: Weights) -> None:
        """Raises: BadInputError, UnsupportedError."""
        self._weights = weights
        found = format.find(stored, weights.raw)
        if not found:
            raise BadInputError(
                f"config.json says that weights are quantized ({format.title}), but none is stored"
                " like that: remove quantization_config if they are not"
            )
        self._packed = {weight.name: weight for weight in found}
        used = {tensor.name for weight in found for tensor in weight.parts.values()}
        self.tensors = {
            name: tensor
            for name, tensor in stored.items()
            if name not in used and not format.ignores(name)
        }
        for name, weight in self._packed.items():
            if name in self.tensors:
                raise BadInputError(f"tensor {show(name)} is there quantized and not quantized")
            self.tensors[name] = _seen(weight)

    @property
    def homes(self) -> Mapping[str, str]:
        """The file of each stored tensor."""
        return self._weights.homes

    def raw(self, name: str) -> np.ndarray:
        """As stored; of a packed weight its values, as it is shown as F32."""
        if name in self._packed:
            return self.float32(name, None)
        return self._weights.raw(name)

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        """Return a float32 copy of the given rows only. Raises BadInputError for broken values."""
        weight = self._packed.get(name)
        if weight is None:
            return self._weights.float32(name, rows)
        chosen = np.arange(weight.shape[0])
        if rows is not None:
            chosen = chosen[rows]
        out = np.empty((len(chosen), weight.shape[1]), np.float32)
        parts = Parts(weight.parts, self._weights.raw)
        step = max(1, CHUNK_WEIGHTS // weight.shape[1])
        for start in range(0, len(chosen), step):
            numbers = chosen[start : start + step]
            with np.errstate(over="ignore", invalid="ignore"):
                values = weight.decode(parts, numbers)
            _check(name, values, numbers)
            out[start : start + step] = values
        return out


def _check(name: str, values: np.ndarray, rows: np.ndarray) -> None:
    """Scales may be so large that products are not. Raises BadInputError."""
    finite = np.isfinite(values)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise BadInputError(
            f"tensor {show(name)}: code and scale give {values[row, column]} at row {rows[row]},"
            f" column {column}: the checkpoint is broken"
        )


def _seen(weight: PackedWeight) -> SourceTensor:
    stored = tuple(weight.parts.values())
    nbytes = sum(tensor.nbytes for tensor in stored)
    names = tuple(tensor.name for tensor in stored)
    return SourceTensor(weight.name, "F32", weight.shape, nbytes, names)
