"""compressed-tensors (llm-compressor): integers, packed or not, FP8, NVFP4 and MXFP4.

weight = (code - zero) * scale with a scale per tensor, row, group of a row or block. By `format`:

- int-quantized, float-quantized, naive-quantized: `weight` is I8 or F8_E4M3.
- pack-quantized: `weight_packed` (I32) holds codes + 2^(bits - 1) as a bit stream along each row,
  `weight_shape` the shape; zeros [rows, groups] likewise, but along each column.
- nvfp4-pack-quantized, mxfp4-pack-quantized: see fp4.py.

The library multiplies in the dtype of the scale, mostly BF16; here the product is exact.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.fp4 import mxfp4_weight, nvfp4_weight
from quantcli.checkpoint.prequantized.fp8 import fp8_weight, read_block
from quantcli.checkpoint.prequantized.grid import Shape
from quantcli.checkpoint.prequantized.integers import int8_weight, packed_integers, read_shape
from quantcli.checkpoint.prequantized.packed import (
    Format,
    PackedWeight,
    Raw,
    Settings,
    Tensors,
    group_size,
    kind_of,
    setting,
)
from quantcli.errors import BadInputError, UnsupportedError

_PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
_PACKED = "pack-quantized"
_PART = "_packed"
_FP4: dict[str, Callable[[Tensors, str], PackedWeight]] = {
    "nvfp4-pack-quantized": nvfp4_weight,
    "mxfp4-pack-quantized": mxfp4_weight,
}


@dataclass(frozen=True)
class CompressedTensors(Format):
    """`block` has one scale, None for one per tensor or row; `bits` are those of a code.

    `asymmetric`: there are zeros; `reordered`: columns are in groups that g_idx names.
    """

    format: str
    bits: int
    block: Shape | None
    asymmetric: bool
    reordered: bool

    def find(self, tensors: Tensors, raw: Raw) -> Sequence[PackedWeight]:
        if self.format in _PLAIN:
            return [
                fp8_weight(tensors, name, self.block)
                if tensor.dtype == "F8_E4M3"
                else int8_weight(tensors, name, self.block, self.asymmetric)
                for name, tensor in tensors.items()
                if name.endswith(".weight") and tensor.dtype in ("F8_E4M3", "I8")
            ]
        names = [name.removesuffix(_PART) for name in tensors if name.endswith(f".weight{_PART}")]
        if self.format in _FP4:
            return [_FP4[self.format](tensors, name) for name in names]
        return self._integers(tensors, names, raw)

    def _integers(self, tensors: Tensors, names: list[str], raw: Raw) -> list[PackedWeight]:
        known: dict[tuple[str, int], Shape] = {}
        found: list[PackedWeight] = []
        for name in names:
            kind = kind_of(name, tensors[name + _PART])
            if kind not in known:
                known[kind] = read_shape(tensors, f"{name}_shape", raw)
            group = self.block[1] if self.block else None
            optional = {"zero_point": self.asymmetric, "g_idx": self.reordered}
            needed = [part for part, wanted in optional.items() if wanted]
            found.append(packed_integers(tensors, name, known[kind], self.bits, group, needed))
        return found


def read_compressed_tensors(settings: Settings) -> CompressedTensors:
    """quant_method compressed-tensors. Raises UnsupportedError, BadInputError."""
    for key in ("sparsity_config", "transform_config"):
        setting(settings, key, (None, {}, {"format": "dense"}))
    weights, format = _weights(settings)
    weights = {"quant_method": f"compressed-tensors {format}", **weights}
    strategy = setting(weights, "strategy", _STRATEGIES[format])
    kind = setting(weights, "type", _TYPES[format])
    bits = setting(weights, "num_bits", range(2, 9) if kind == "int" else _FLOAT_BITS[format])
    act_order = setting(weights, "actorder", _ORDERS if format == _PACKED else _ORDERS[:4])
    asymmetric = not setting(weights, "symmetric", (True, False), True)
    block = None
    if strategy in ("group", "tensor_group"):
        size = group_size(weights)
        if size is None:
            raise BadInputError("quantization_config in config.json: 'group' without 'group_size'")
        block = 1, size
    elif strategy == "block":
        block = read_block(weights.get("block_structure"))
    name = {"int": f"integers of {bits} bits", "float": f"FP{bits}"}[kind]
    title = f"compressed-tensors {format}, {name}"
    reordered = act_order in _ORDERS[4:]
    return CompressedTensors(title, format, bits, block, asymmetric, reordered)


_STRATEGIES = {
    **dict.fromkeys(_PLAIN, ("tensor", "channel", "group", "block")),
    _PACKED: ("channel", "group"),
    "nvfp4-pack-quantized": ("tensor_group",),
    "mxfp4-pack-quantized": ("group",),
}
# The last three reorder columns (weight_g_idx), the others leave them in their groups.
_ORDERS = (None, False, "weight", "static", "group", "dynamic", True)
_FLOAT_BITS = {**dict.fromkeys(_PLAIN, (8,)), **dict.fromkeys(_FP4, (4,))}
_TYPES = {
    "int-quantized": ("int",),
    "float-quantized": ("float",),
    "naive-quantized": ("int", "float"),
    _PACKED: ("int",),
    **dict.fromkeys(_FP4, ("float",)),
}


def _weights(settings: Settings) -> tuple[dict[str, Any], str]:
    """What all groups of modules say of their weights, and the format. Raises UnsupportedError."""
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise BadInputError(
            f"quantization_config in config.json: 'config_groups' = {show(groups)} is no object of"
            " objects"
        )
    found = [
        (group["weights"], group.get("format") or settings.get("format"))
        for group in groups.values()
        if isinstance(group.get("weights"), dict)
    ]
    if not found or any(each != found[0] for each in found):
        raise UnsupportedError(
            "quantization_config in config.json: compressed-tensors with"
            f" {len(found)} kinds of weights in 'config_groups' is not supported (only one):"
            " give the original instead"
        )
    weights, format = found[0]
    return weights, setting({**settings, "format": format}, "format", tuple(_TYPES))
