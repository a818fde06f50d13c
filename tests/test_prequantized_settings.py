"""A quantization_config that makes no sense or is not supported: one line that names it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packers_compressed import settings
from packing import write_parts

from quantcli.checkpoint import open_checkpoint
from quantcli.errors import BadInputError, QuantcliError, UnsupportedError

SETTINGS: dict[str, tuple[dict[str, Any], type[QuantcliError], list[str]]] = {
    "fp8 e5m2": ({"quant_method": "fp8", "fmt": "e5m2"}, UnsupportedError, ["'e5m2'"]),
    "fp8 block": (
        {"quant_method": "fp8", "weight_block_size": [128]}, BadInputError, ["[128]"],
    ),
    "fp8 block of 0": (
        {"quant_method": "fp8", "weight_block_size": [0, 1]}, BadInputError, ["[0, 1]"],
    ),
    "gptq of 5 bits": ({"quant_method": "gptq", "bits": 5}, UnsupportedError, ["'bits' = 5"]),
    "gptq of no bits": ({"quant_method": "gptq"}, UnsupportedError, ["'bits' = None"]),
    "gptq of true bits": ({"quant_method": "gptq", "bits": 4.0}, UnsupportedError, ["4.0"]),
    "gptq for marlin": (
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        UnsupportedError,
        ["'marlin'"],
    ),
    "gptq for marlin, older": (
        {"quant_method": "gptq", "bits": 4, "is_marlin_format": True},
        UnsupportedError,
        ["is_marlin_format"],
    ),
    "gptq of groups of 0": (
        {"quant_method": "gptq", "bits": 4, "group_size": 0}, BadInputError, ["'group_size' = 0"],
    ),
    "gptq of a group of text": (
        {"quant_method": "gptq", "bits": 4, "group_size": "x"}, BadInputError, ["'x'"],
    ),
    "gptq of many kinds": (
        {"quant_method": "gptq", "bits": 4, "dynamic": {"+:a": {"bits": 8}}},
        UnsupportedError,
        ["'dynamic'"],
    ),
    "modelopt of integers": (
        {"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, UnsupportedError, ["'quant_algo'"],
    ),
    "awq gemv": (
        {"quant_method": "awq", "bits": 4, "version": "gemv"}, UnsupportedError, ["'gemv'"],
    ),
    "awq of 3 bits": ({"quant_method": "awq", "bits": 3}, UnsupportedError, ["'bits' = 3"]),
    "bnb of other bits": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "x"},
        UnsupportedError,
        ["'x'"],
    ),
    "bnb in wider numbers": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_storage": "float32"},
        UnsupportedError,
        ["'float32'"],
    ),
    "ct of no groups": (
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        BadInputError,
        ["'config_groups' = None"],
    ),
    "ct of presets": (
        {"quant_method": "compressed-tensors", "config_groups": {"W8A8": ["Linear"]}},
        BadInputError,
        ["no object of objects"],
    ),
    "ct of no weights": (
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": None}}},
        UnsupportedError,
        ["0 kinds of weights"],
    ),
    "ct of two kinds": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"a": {"weights": {"num_bits": 4}}, "b": {"weights": {}}},
        },
        UnsupportedError,
        ["2 kinds of weights"],
    ),
    "ct sparse": (
        settings("pack-quantized", 4, "int", "channel")
        | {"sparsity_config": {"format": "sparse-24-bitmask"}},
        UnsupportedError,
        ["'sparsity_config'"],
    ),
    "ct rotated": (
        settings("pack-quantized", 4, "int", "channel") | {"transform_config": {"a": 1}},
        UnsupportedError,
        ["'transform_config'"],
    ),
    "ct marlin": (
        settings("marlin-24", 4, "int", "channel"), UnsupportedError, ["'format' = 'marlin-24'"],
    ),
    "ct of another strategy": (
        settings("pack-quantized", 4, "int", "tensor"), UnsupportedError, ["'strategy' = 'tensor'"],
    ),
    "ct of groups of no size": (
        settings("pack-quantized", 4, "int", "group"), BadInputError, ["without 'group_size'"],
    ),
    "ct of 9 bits": (
        settings("pack-quantized", 9, "int", "channel"), UnsupportedError, ["'num_bits' = 9"],
    ),
    "ct of reordered int8": (
        settings("int-quantized", 8, "int", "channel", actorder="group"),
        UnsupportedError,
        ["'actorder' = 'group'"],
    ),
    "awq of its authors": (
        {"quant_method": "awq", "bits": 4, "backend": "llm-awq"}, UnsupportedError, ["'llm-awq'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_make_no_sense_or_are_not_supported(name: str, tmp_path: Path) -> None:
    given, kind, words = SETTINGS[name]
    folder = write_parts(tmp_path / "m", given, {"weight": ("F32", np.ones((2, 2), np.float32))})
    with pytest.raises(QuantcliError) as caught:
        open_checkpoint(str(folder))
    assert type(caught.value) is kind
    assert "quantization_config" in str(caught.value)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
