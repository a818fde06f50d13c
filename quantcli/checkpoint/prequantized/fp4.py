"""Weights of two E2M1 numbers to a byte, the first in the lower half: NVFP4 and MXFP4.

NVFP4: groups of 16 share an E4M3 scale, over a float32 that all share. MXFP4: groups of 32 share a
power of two. compressed_tensors/compressors/nvfp4, mxfp4.
"""

from dataclasses import dataclass

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.floats import E2M1, E8M0
from quantcli.checkpoint.prequantized.packed import PackedWeight, Parts, Tensors, matrix, part
from quantcli.errors import BadInputError


@dataclass(frozen=True)
class Fp4Weight(PackedWeight):
    """Parts: weight, scale and, of NVFP4, global."""

    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        pairs = parts.codes("weight")[rows]
        codes = np.stack((pairs & np.uint8(15), pairs >> np.uint8(4)), axis=-1)
        w = E2M1[codes.reshape(len(rows), -1)]
        scales = self._scales(parts, rows)
        w.reshape(*scales.shape, -1)[...] *= scales[..., None]
        return w

    def _scales(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        """Float32 [len(rows), groups]. Raises BadInputError unless finite."""
        if "global" in self.parts:
            shared = parts.values("global").reshape(())
            if shared == 0:
                raise parts.refuse("global", "is 0, and scales are divided by it")
            return parts.values("scale", rows) / shared
        found = E8M0[parts.codes("scale")[rows]]
        if np.isnan(found).any():
            raise parts.refuse("scale", "holds nan: the checkpoint is broken")
        return found


def nvfp4_weight(tensors: Tensors, name: str) -> Fp4Weight:
    """The weight `name`. Raises BadInputError, UnsupportedError."""
    return _weight(tensors, name, 16, "F8_E4M3", shared=True)


def mxfp4_weight(tensors: Tensors, name: str) -> Fp4Weight:
    """The weight `name`. Raises BadInputError, UnsupportedError."""
    return _weight(tensors, name, 32, "U8", shared=False)


def _weight(tensors: Tensors, name: str, group: int, scale: str, *, shared: bool) -> Fp4Weight:
    weight = matrix(tensors, f"{name}_packed", ("U8",))
    rows, columns = weight.shape[0], 2 * weight.shape[1]
    groups = (rows, -(-columns // group))
    if columns % group:
        raise BadInputError(
            f"tensor {show(weight.name)} has {columns} columns, which groups of {group} do not fill"
        )
    parts = {"weight": weight, "scale": part(tensors, f"{name}_scale", (scale,), groups)}
    if shared:
        parts["global"] = part(tensors, f"{name}_global_scale", ("F32",), (), (1,))
    return Fp4Weight(name, (rows, columns), parts)
