"""Record what the libraries of quantized formats make of weights that they quantized themselves.

    python -m pip install torch transformers compressed-tensors bitsandbytes
    python scripts/record/prequantized.py [tests/data/prequantized]

A safetensors file per case: the parts as the library stores them, and `expected`, its own float32
dequantization; quantization_config and versions are in `__metadata__`. Where a library multiplies
in the dtype of a scale, the scale is given to it as float32, which holds the same number.
"""

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb  # type: ignore[import-not-found, unused-ignore]
import torch  # type: ignore[import-not-found, unused-ignore]
from compressed_tensors.compressors import (  # type: ignore[import-not-found, unused-ignore]
    BaseCompressor,
)
from compressed_tensors.compressors.nvfp4.helpers import (  # type: ignore[import-not-found, unused-ignore]
    unpack_fp4_from_uint8,
)
from compressed_tensors.quantization import (  # type: ignore[import-not-found, unused-ignore]
    QuantizationScheme,
)
from compressed_tensors.quantization.lifecycle.forward import (  # type: ignore[import-not-found, unused-ignore]
    dequantize,
)
from safetensors.torch import save_file  # type: ignore[import-not-found, unused-ignore]
from transformers.integrations.finegrained_fp8 import (  # type: ignore[import-not-found, unused-ignore]
    Fp8Dequantize,
)

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("bitsandbytes", "compressed-tensors", "torch", "transformers")
Parts = dict[str, Any]
Case = tuple[dict[str, Any], Parts, Any]


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/data/prequantized"
    target.mkdir(parents=True, exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    torch.manual_seed(1)
    cases = {"fp8-codes": fp8_codes(), "fp8-blocks": fp8_blocks(), "bnb-int8": bnb_int8()}
    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            cases[f"bnb-{kind}{'-nested' * nested}"] = bnb_four_bits(kind, nested)
    cases |= compressed()
    for name, (settings, parts, expected) in cases.items():
        tensors = {f"a.{suffix}": part.contiguous() for suffix, part in parts.items()}
        tensors["expected"] = expected.to(torch.float32).contiguous()
        metadata = {"quantization_config": json.dumps(settings), "versions": json.dumps(versions)}
        save_file(tensors, target / f"{name}.safetensors", metadata)
        print(name, {suffix: tuple(part.shape) for suffix, part in parts.items()})


def fp8_codes() -> Case:
    """Every number but NaN."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    weight = torch.where(codes.float().isnan(), torch.zeros(256), codes.float())
    parts = {
        "weight": weight.to(torch.float8_e4m3fn).reshape(16, 16),
        "weight_scale": torch.tensor(0.37),
    }
    return {"quant_method": "fp8"}, parts, parts["weight"].float() * parts["weight_scale"]


def fp8_blocks() -> Case:
    weight = torch.randn(32, 48).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 3) + 0.01
    expected = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    parts = {"weight": weight, "weight_scale_inv": scale}
    return {"quant_method": "fp8", "weight_block_size": [16, 16]}, parts, expected


def bnb_int8() -> Case:
    weight = torch.randn(12, 40)
    scb = weight.abs().amax(dim=1)
    codes = (weight * (127 / scb[:, None])).round().to(torch.int8)
    parts = {"weight": codes, "SCB": scb, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    return settings, parts, bnb.int8_vectorwise_dequant(codes, scb)


def bnb_four_bits(kind: str, nested: bool) -> Case:
    codes, state = bnb.quantize_4bit(
        torch.randn(37, 111) / 10, blocksize=64, compress_statistics=nested, quant_type=kind
    )
    parts = {f"weight.{key}": value for key, value in state.as_dict(packed=True).items()}
    settings = {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_quant_storage": "uint8",
    }
    return settings, {"weight": codes, **parts}, bnb.dequantize_4bit(codes, state)


def compressed() -> dict[str, Case]:
    def integers(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
        return {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": True} | more

    def floats(bits: int, strategy: str, **more: Any) -> dict[str, Any]:
        return {"num_bits": bits, "type": "float", "strategy": strategy, "symmetric": True} | more

    zeros = {"symmetric": False}
    group = {"group_size": 32}
    cases = {
        "ct-packed-group": ("pack-quantized", integers(4, "group", **group)),
        "ct-packed-group-zeros": ("pack-quantized", integers(4, "group", **group, **zeros)),
        "ct-packed-3-bits": ("pack-quantized", integers(3, "group", **group, **zeros)),
        "ct-packed-8-bits": ("pack-quantized", integers(8, "channel")),
        "ct-int8": ("int-quantized", integers(8, "channel")),
        "ct-int8-zeros": ("int-quantized", integers(8, "channel", **zeros)),
        "ct-fp8": ("float-quantized", floats(8, "channel")),
        "ct-fp8-blocks": ("float-quantized", floats(8, "block", block_structure=[16, 16])),
        "ct-nvfp4": ("nvfp4-pack-quantized", floats(4, "tensor_group", group_size=16)),
        "ct-mxfp4": ("mxfp4-pack-quantized", floats(4, "group", group_size=32)),
    }
    return {name: one_compressed(form, weights) for name, (form, weights) in cases.items()}


def one_compressed(form: str, weights: dict[str, Any]) -> Case:
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    compressor = BaseCompressor.get_value_from_registry(form)
    weight = torch.randn(24, 96) / 10
    columns = weights.get("group_size", 96)
    shape = {"block": (2, 6), "channel": (24, 1)}.get(weights["strategy"], (24, 96 // columns))
    scale = torch.rand(shape) / 50 + 0.005
    state: Parts = {"weight": weight}
    if form.startswith("nvfp4"):
        state["weight_global_scale"] = torch.tensor([713.0])
        scale = (scale * 713).to(torch.float8_e4m3fn).float()
    elif form.startswith("mxfp4"):
        scale = 2.0 ** torch.randint(-9, -4, shape)
    else:
        scale = scale.to(torch.bfloat16).float()
    state["weight_scale"] = scale
    if not weights["symmetric"]:
        half = 1 << (weights["num_bits"] - 1)
        state["weight_zero_point"] = torch.randint(-half, half, shape, dtype=torch.int8)
    parts = compressor.compress(state, scheme)
    expected = compressor.decompress(dict(parts), scheme)["weight"]
    if form.startswith("nvfp4"):  # which is rounded to BF16 at the end
        packed = parts["weight_packed"]
        expected = dequantize(
            unpack_fp4_from_uint8(packed, *weight.shape, dtype=torch.float32),
            parts["weight_scale"].float(),
            args=scheme.weights,
            global_scale=parts["weight_global_scale"],
            dtype=torch.float32,
        )
    if parts["weight_scale"].dtype == torch.float32:
        parts["weight_scale"] = parts["weight_scale"].to(torch.bfloat16)
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    settings = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "quantization_status": "compressed",
    }
    return settings, dict(parts), expected


if __name__ == "__main__":
    main()
