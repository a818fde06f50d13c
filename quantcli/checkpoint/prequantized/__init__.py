"""Checkpoints that are quantized already, seen as if they were not.

Each format turns its stored parts into weights under their usual names. Weights are shown and
computed as F32: products of a scale and a code seldom fit BF16 or F16, and the formats' runtimes
round to these only because their activations are such. What float32 holds exactly (all formats of
integer codes with F16 or BF16 scales) comes exactly, the rest as one float32 operation per step
of the format's own definition.
"""

from collections.abc import Callable, Mapping
from typing import Any

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.awq import read_awq
from quantcli.checkpoint.prequantized.bitsandbytes import read_bitsandbytes
from quantcli.checkpoint.prequantized.compressed_tensors import read_compressed_tensors
from quantcli.checkpoint.prequantized.fp8 import read_fbgemm, read_fp8
from quantcli.checkpoint.prequantized.gptq import read_gptq
from quantcli.checkpoint.prequantized.modelopt import read_modelopt
from quantcli.checkpoint.prequantized.packed import Format, Settings
from quantcli.errors import UnsupportedError

__all__ = ["Format", "read_format"]

_FORMATS: Mapping[str, Callable[[Settings], Format]] = {
    "fp8": read_fp8,
    "fbgemm_fp8": read_fbgemm,
    "gptq": read_gptq,
    "awq": read_awq,
    "bitsandbytes": read_bitsandbytes,
    "compressed-tensors": read_compressed_tensors,
    "modelopt": read_modelopt,
}


def read_format(config: Mapping[str, Any]) -> Format | None:
    """The format that config.json announces, None if the weights are not quantized.

    Raises: UnsupportedError (naming the method), BadInputError (settings that make no sense).
    """
    text_config = config.get("text_config")
    for each in (config, text_config if isinstance(text_config, dict) else {}):
        # "quantization" is MLX's, which stands beside a quantization_config of the same content.
        for key in ("quantization", "quantization_config", "compression_config"):
            if settings := each.get(key):
                method = _method(settings)
                if key == "quantization" or method not in _FORMATS:
                    raise UnsupportedError(
                        f"the checkpoint is already quantized ({key} in config.json: {method}), in"
                        " a way that is not supported: give the original instead"
                    )
                return _FORMATS[method](settings)
    return None


def _method(settings: object) -> str:
    if not isinstance(settings, dict):
        return show(settings)
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return show(settings.get("quant_method", settings.get("mode", "method not named"))).strip("'")
