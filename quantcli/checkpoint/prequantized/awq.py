"""AWQ in the GEMM layout of AutoAWQ: integer codes of 4 bits.

weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]) with g = i // group_size. `qweight`
[in, out / 8] and `qzeros` [groups, out / 8] hold 8 codes along o in a word, interleaved: nibble
p, from the lowest, is code ORDER[p] (awq/utils/packing_utils.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.floats import FLOATS
from quantcli.checkpoint.prequantized.packed import (
    Format,
    PackedWeight,
    Parts,
    Raw,
    Settings,
    Tensors,
    group_size,
    matrix,
    part,
    setting,
)
from quantcli.errors import BadInputError

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_SHIFTS = 4 * np.argsort(ORDER).astype(np.int32)


@dataclass(frozen=True)
class AwqWeight(PackedWeight):
    """Parts: qweight, qzeros, scales; columns are in groups of `group`."""

    group: int

    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        groups = np.arange(self.shape[1]) // self.group
        w = _codes(parts.codes("qweight"), rows).T.astype(np.float32, order="C")
        w -= _codes(parts.codes("qzeros"), rows).T.astype(np.float32)[:, groups]
        w *= parts.values("scales", (slice(None), rows)).T[:, groups]
        return w


def _codes(words: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Uint8 [..., len(numbers)]: the codes with these numbers along the last axis."""
    return (words[..., numbers >> 3] >> _SHIFTS[numbers & 7]).astype(np.uint8) & np.uint8(15)


@dataclass(frozen=True)
class Awq(Format):
    """`group`: columns of a group, None for all."""

    group: int | None

    def find(self, tensors: Tensors, raw: Raw) -> Sequence[PackedWeight]:
        ending = ".qweight"
        stems = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
        return [self._weight(tensors, stem) for stem in stems]

    def _weight(self, tensors: Tensors, stem: str) -> AwqWeight:
        qweight = matrix(tensors, f"{stem}.qweight", ("I32",))
        columns, words = qweight.shape
        group, rows = self.group or columns, words * 8
        if columns % group:
            raise BadInputError(
                f"tensor {show(qweight.name)} has {columns} columns, which groups of {group} do"
                " not fill"
            )
        parts = {
            "qweight": qweight,
            "qzeros": part(tensors, f"{stem}.qzeros", ("I32",), (columns // group, words)),
            "scales": part(tensors, f"{stem}.scales", FLOATS, (columns // group, rows)),
        }
        return AwqWeight(f"{stem}.weight", (rows, columns), parts, group)


def read_awq(settings: Settings) -> Awq:
    """quant_method awq. Raises UnsupportedError, BadInputError."""
    setting(settings, "bits" if "bits" in settings else "w_bit", (4,))
    # GEMV packs along the other axis.
    setting(settings, "version", ("gemm", "GEMM"), "gemm")
    setting(settings, "backend", ("auto", "autoawq", None))
    setting(settings, "zero_point", (True,), True)
    key = "group_size" if "group_size" in settings else "q_group_size"
    return Awq("AWQ of 4 bits", group_size(settings, key))
