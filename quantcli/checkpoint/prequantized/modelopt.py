"""NVIDIA's Model Optimizer: FP8 with a scale per tensor, and NVFP4.

NVFP4: `weight` (U8) holds two E2M1 numbers to a byte, see fp4.py; the scale of a group is E4M3
times `weight_scale_2`. modelopt/torch/quantization/qtensor/nvfp4_tensor.py: dequantize.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from quantcli.checkpoint.prequantized.fp4 import modelopt_weight
from quantcli.checkpoint.prequantized.fp8 import Fp8
from quantcli.checkpoint.prequantized.packed import (
    Format,
    PackedWeight,
    Raw,
    Settings,
    Tensors,
    setting,
)


@dataclass(frozen=True)
class Nvfp4(Format):
    """Of the weights that are not quantized none is U8."""

    def find(self, tensors: Tensors, raw: Raw) -> Sequence[PackedWeight]:
        return [
            modelopt_weight(tensors, name)
            for name, tensor in tensors.items()
            if tensor.dtype == "U8" and name.endswith(".weight")
        ]


def read_modelopt(settings: Settings) -> Format:
    """quant_method modelopt. Raises UnsupportedError."""
    algorithm = setting(settings, "quant_algo", ("FP8", "NVFP4"))
    if algorithm == "FP8":
        return Fp8("Model Optimizer FP8", None)
    return Nvfp4("Model Optimizer NVFP4")
