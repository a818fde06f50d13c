"""GPTQ as AutoGPTQ and GPTQModel store it: integer codes of 2, 3, 4 or 8 bits.

weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]) with g = g_idx[i]. Codes are bit streams
along i in `qweight` [in * bits / 32, out], zeros along o in `qzeros` [groups, out * bits / 32].
With act-order g_idx is what the order of quantization made it, else i // group_size.

Of zeros the first version of the format (checkpoint_format "gptq" or not named) stores one less:
one is subtracted in every code of a word at once, so that where zero is 0 the words borrow, and
adding one likewise gives back what was there. Codes of 3 bits straddle words and are counted
each alone. So does GPTQModel, utils/model.py: convert_gptq_v1_to_v2_format_module.

AutoGPTQ gave every layer a bias, of zeros where the model has none: these are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.bits import take, unpack
from quantcli.checkpoint.prequantized.floats import FLOATS
from quantcli.checkpoint.prequantized.packed import (
    Format,
    PackedWeight,
    Parts,
    Raw,
    Settings,
    Tensors,
    group_size,
    kind_of,
    matrix,
    part,
    setting,
)
from quantcli.errors import BadInputError, UnsupportedError

_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}  # one in every code of a word


@dataclass(frozen=True)
class GptqWeight(PackedWeight):
    """Parts: qweight, qzeros, scales and, unless columns are in groups of `group`, g_idx.

    Also bias, if it is one of zeros.
    """

    bits: int
    group: int
    one_less: bool

    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        columns = self.shape[1]
        codes = unpack(parts.codes("qweight")[:, rows].T, self.bits, columns)
        zeros = self._zeros(parts.codes("qzeros"), rows).T
        scales = parts.values("scales", (slice(None), rows)).T
        groups = self._groups(parts)
        w = codes.astype(np.float32)
        w -= zeros.astype(np.float32)[:, groups]
        w *= scales[:, groups]
        if "bias" in self.parts and parts.values("bias", rows).any():
            raise parts.refuse("bias", "is not 0 as in other blocks")
        return w

    def _zeros(self, words: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Uint8 [groups, len(rows)]."""
        if not self.one_less:
            return take(words, self.bits, rows)
        if self.bits in _ONES:
            return take(words.view(np.uint32) + np.uint32(_ONES[self.bits]), self.bits, rows)
        return (take(words, self.bits, rows) + np.uint8(1)) & np.uint8((1 << self.bits) - 1)

    def _groups(self, parts: Parts) -> np.ndarray:
        """Of each column. Raises BadInputError for a group that is not there."""
        if "g_idx" in self.parts:
            return parts.groups("g_idx", self.parts["scales"].shape[0])
        return np.arange(self.shape[1]) // self.group


@dataclass(frozen=True)
class Gptq(Format):
    """`group`: columns of a group, None for all; `one_less`: what is stored of zeros."""

    bits: int
    group: int | None
    one_less: bool

    def find(self, tensors: Tensors, raw: Raw) -> Sequence[PackedWeight]:
        ending = ".qweight"
        stems = [name.removesuffix(ending) for name in tensors if name.endswith(ending)]
        zero: dict[tuple[str, int], bool] = {}
        found = []
        for stem in stems:
            weight = self._weight(tensors, stem)
            if f"{stem}.bias" in tensors:
                bias = part(tensors, f"{stem}.bias", FLOATS, weight.shape[:1])
                kind = kind_of(bias.name, bias)
                if kind not in zero:
                    zero[kind] = not Parts({"bias": bias}, raw).values("bias").any()
                if zero[kind]:
                    weight = replace(weight, parts={**weight.parts, "bias": bias})
            found.append(weight)
        return found

    def _weight(self, tensors: Tensors, stem: str) -> GptqWeight:
        qweight = matrix(tensors, f"{stem}.qweight", ("I32",))
        words, rows = qweight.shape
        columns = words * 32 // self.bits
        if (words * 32) % self.bits or (rows * self.bits) % 32:
            raise BadInputError(
                f"tensor {show(qweight.name)} has shape {qweight.shape}, which codes of"
                f" {self.bits} bits do not fill"
            )
        group = self.group or columns
        groups = -(-columns // group)
        parts = {
            "qweight": qweight,
            "qzeros": part(tensors, f"{stem}.qzeros", ("I32",), (groups, rows * self.bits // 32)),
            "scales": part(tensors, f"{stem}.scales", FLOATS, (groups, rows)),
        }
        if f"{stem}.g_idx" in tensors:
            parts["g_idx"] = part(tensors, f"{stem}.g_idx", ("I32",), (columns,))
        return GptqWeight(f"{stem}.weight", (rows, columns), parts, self.bits, group, self.one_less)


def read_gptq(settings: Settings) -> Gptq:
    """quant_method gptq. Raises UnsupportedError, BadInputError."""
    bits = setting(settings, "bits", (2, 3, 4, 8))
    setting(settings, "is_marlin_format", (False, None))
    # GPTQModel 2 and later also names it "format".
    key = "checkpoint_format" if "checkpoint_format" in settings else "format"
    version = setting(settings, key, ("gptq", "gptq_v2"), "gptq")
    setting(settings, "pack_dtype", ("int32",), "int32")
    dynamic = settings.get("dynamic") or {}
    # "-:" says which modules are not quantized, which their tensors say as well.
    if not isinstance(dynamic, dict) or not all(str(key).startswith("-:") for key in dynamic):
        raise UnsupportedError(
            "quantization_config in config.json: 'dynamic' gives modules settings of their own,"
            " which is not supported: give the original instead"
        )
    return Gptq(f"GPTQ of {bits} bits", bits, group_size(settings), version == "gptq")
