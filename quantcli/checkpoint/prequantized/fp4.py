"""Weights of two E2M1 numbers to a byte, the first in the lower half: NVFP4 and MXFP4.

NVFP4: groups of 16 share an E4M3 scale, that a float32 divides (compressed-tensors) or multiplies
(Model Optimizer) for the whole tensor. MXFP4: groups of 32 share a power of two.
compressed_tensors/compressors/nvfp4, mxfp4.
"""

from dataclasses import dataclass

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.floats import E2M1, E8M0
from quantcli.checkpoint.prequantized.packed import PackedWeight, Parts, Tensors, matrix, part
from quantcli.checkpoint.source_tensor import SourceTensor
from quantcli.errors import BadInputError


@dataclass(frozen=True)
class Fp4Weight(PackedWeight):
    """Parts: weight, scale and, of NVFP4, divisor or factor."""

    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        pairs = parts.codes("weight")[rows]
        codes = np.stack((pairs & np.uint8(15), pairs >> np.uint8(4)), axis=-1)
        w = E2M1[codes.reshape(len(rows), -1)]
        scales = self._scales(parts, rows)
        w.reshape(*scales.shape, -1)[...] *= scales[..., None]
        return w

    def _scales(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        """Float32 [len(rows), groups]. Raises BadInputError unless finite."""
        if "factor" in self.parts:
            return parts.values("scale", rows) * parts.values("factor").reshape(())
        if "divisor" in self.parts:
            divisor = parts.values("divisor").reshape(())
            if divisor == 0:
                raise parts.refuse("divisor", "is 0, and scales are divided by it")
            return parts.values("scale", rows) / divisor
        found = E8M0[parts.codes("scale")[rows]]
        if np.isnan(found).any():
            raise parts.refuse("scale", "holds nan: the checkpoint is broken")
        return found


def nvfp4_weight(tensors: Tensors, name: str) -> Fp4Weight:
    """The weight `name` of compressed-tensors. Raises BadInputError, UnsupportedError."""
    found = _parts(tensors, name, f"{name}_packed", 16, "F8_E4M3")
    found["divisor"] = part(tensors, f"{name}_global_scale", ("F32",), (), (1,))
    return _weight(name, found)


def mxfp4_weight(tensors: Tensors, name: str) -> Fp4Weight:
    """The weight `name` of compressed-tensors. Raises BadInputError, UnsupportedError."""
    return _weight(name, _parts(tensors, name, f"{name}_packed", 32, "U8"))


def modelopt_weight(tensors: Tensors, name: str) -> Fp4Weight:
    """The weight `name` of Model Optimizer. Raises BadInputError, UnsupportedError."""
    found = _parts(tensors, name, name, 16, "F8_E4M3")
    found["factor"] = part(tensors, f"{name}_scale_2", ("F32",), (), (1,))
    return _weight(name, found)


def _parts(
    tensors: Tensors, name: str, packed: str, group: int, scale: str
) -> dict[str, SourceTensor]:
    weight = matrix(tensors, packed, ("U8",))
    rows, columns = weight.shape[0], 2 * weight.shape[1]
    if columns % group:
        raise BadInputError(
            f"tensor {show(packed)} has {columns} columns, which groups of {group} do not fill"
        )
    groups = rows, columns // group
    return {"weight": weight, "scale": part(tensors, f"{name}_scale", (scale,), groups)}


def _weight(name: str, parts: Tensors) -> Fp4Weight:
    rows, half = parts["weight"].shape
    return Fp4Weight(name, (rows, 2 * half), parts)
