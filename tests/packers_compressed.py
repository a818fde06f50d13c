"""Packers of tests/packing.py for compressed-tensors."""

from typing import Any

import numpy as np
from packing import Case, Packed, Packer, bf16, e4m3, packed_rows, scales_of, small_float

Place = tuple[int, ...]


def integers(strategy: str, size: int = 0, *, asymmetric: bool = False) -> Packer:
    """I8 codes with BF16 scales of the "tensor", each "row", "group" or square "block"."""

    def pack(random: np.random.Generator, rows: int, columns: int) -> Packed:
        codes = random.integers(-128, 128, (rows, columns)).astype(np.int8)
        shape, place = _laid(strategy, size, rows, columns)
        stored, scales = bf16(scales_of(random, shape))
        zeros = random.integers(-128, 128, shape).astype(np.int8)
        w = np.empty((rows, columns), np.float32)
        for i in range(rows):
            for j in range(columns):
                at = place(i, j)
                zero = int(zeros[at]) if asymmetric else 0
                w[i, j] = (int(codes[i, j]) - zero) * float(scales[at])
        parts = {"weight": ("I8", codes), "weight_scale": ("BF16", stored)}
        if asymmetric:
            parts["weight_zero_point"] = "I8", zeros
        return Packed(parts, w)

    return pack


def floats(strategy: str, size: int = 0) -> Packer:
    """F8_E4M3 numbers with BF16 scales."""

    def pack(random: np.random.Generator, rows: int, columns: int) -> Packed:
        codes, values = e4m3(random, (rows, columns))
        shape, place = _laid(strategy, size, rows, columns)
        stored, scales = bf16(scales_of(random, shape))
        w = np.empty((rows, columns), np.float32)
        for i in range(rows):
            for j in range(columns):
                w[i, j] = float(values[i, j]) * float(scales[place(i, j)])
        return Packed({"weight": ("F8_E4M3", codes), "weight_scale": ("BF16", stored)}, w)

    return pack


def _laid(strategy: str, size: int, rows: int, columns: int) -> tuple[Place, Any]:
    """Shape of the scales, and where the one of (row, column) is."""
    return {
        "tensor": ((1,), lambda _i, _j: (0,)),
        "channel": ((rows, 1), lambda i, _j: (i, 0)),
        "group": ((rows, columns // (size or 1)), lambda i, j: (i, j // size)),
        "block": (
            (-(-rows // (size or 1)), -(-columns // (size or 1))),
            lambda i, j: (i // size, j // size),
        ),
    }[strategy]


def packed(
    bits: int, group: int = 0, *, asymmetric: bool = False, act_order: bool = False
) -> Packer:
    """`group`: 0 for a scale per row."""

    def pack(random: np.random.Generator, rows: int, columns: int) -> Packed:
        low, high = -(1 << (bits - 1)), 1 << (bits - 1)
        codes = random.integers(low, high, (rows, columns))
        groups = np.arange(columns) // (group or columns)
        count = int(groups[-1]) + 1
        if act_order:
            groups = random.permutation(groups)
        stored, scales = bf16(scales_of(random, (rows, count)))
        zeros = random.integers(low, high, (rows, count)) * asymmetric
        w = np.empty((rows, columns), np.float32)
        for i in range(rows):
            for j in range(columns):
                g = groups[j]
                w[i, j] = (int(codes[i, j]) - int(zeros[i, g])) * float(scales[i, g])
        parts = {
            "weight_packed": ("I32", packed_rows(codes - low, bits)),
            "weight_scale": ("BF16", stored),
            "weight_shape": ("I64", np.array([rows, columns], np.int64)),
        }
        if asymmetric:
            down = packed_rows((zeros - low).T, bits).T
            parts["weight_zero_point"] = "I32", np.ascontiguousarray(down)
        if act_order:
            parts["weight_g_idx"] = "I32", groups.astype(np.int32)
        return Packed(parts, w)

    return pack


def fp4(group: int, *, modelopt: bool = False) -> Packer:
    """NVFP4 in groups of 16, MXFP4 in groups of 32."""

    def pack(random: np.random.Generator, rows: int, columns: int) -> Packed:
        codes = random.integers(0, 16, (rows, columns))
        pairs = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
        parts = {"weight" if modelopt else "weight_packed": ("U8", pairs)}
        shape = rows, columns // group
        if group == 16:
            stored, scales = e4m3(random, shape)
            parts["weight_scale"] = "F8_E4M3", stored
            shared = np.float32(random.uniform(100, 4000))
            if modelopt:
                shared = 1 / shared
                parts["weight_scale_2"] = "F32", np.array(shared)
                scales = np.array([[scale * shared for scale in row] for row in scales])
            else:
                parts["weight_global_scale"] = "F32", np.array([shared])
                scales = np.array([[scale / shared for scale in row] for row in scales])
        else:
            stored = random.integers(110, 130, shape, np.uint8)
            parts["weight_scale"] = "U8", stored
            scales = np.exp2(stored.astype(np.float64) - 127)
        w = np.empty((rows, columns), np.float32)
        for i in range(rows):
            for j in range(columns):
                number = np.float32(small_float(int(codes[i, j]), 2, 1))
                w[i, j] = number * np.float32(scales[i, j // group])
        return Packed(parts, w)

    return pack


def settings(form: str, bits: int, kind: str, strategy: str, **weights: Any) -> dict[str, Any]:
    scheme = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True} | weights
    group = {"targets": ["Linear"], "weights": scheme, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }


def _packed(bits: int, size: int = 0, **options: bool) -> Case:
    weights: dict[str, Any] = {"symmetric": not options.get("asymmetric")}
    if options.get("act_order"):
        weights["actorder"] = "group"
    weights["group_size"] = size or None
    strategy = "group" if size else "channel"
    return Case(
        settings("pack-quantized", bits, "int", strategy, **weights),
        packed(bits, size, **options),
        f"compressed-tensors pack-quantized, integers of {bits} bits",
        (19, 64) if size else (19, 37),
    )


_INT8 = "compressed-tensors int-quantized, integers of 8 bits"
_FP8 = "compressed-tensors float-quantized, FP8"
COMPRESSED = {
    "ct packed": _packed(4, 32),
    "ct packed asymmetric": _packed(4, 32, asymmetric=True),
    "ct packed act-order": _packed(4, 16, act_order=True),
    "ct packed rows": _packed(4),
    "ct packed rows asymmetric": _packed(4, asymmetric=True),
    "ct packed 2 bits": _packed(2, 32),
    "ct packed 3 bits": _packed(3, asymmetric=True),
    "ct packed 8 bits": _packed(8, 32, asymmetric=True),
    "ct int8 rows": Case(
        settings("int-quantized", 8, "int", "channel"), integers("channel"), _INT8, (7, 33)
    ),
    "ct int8 tensor asymmetric": Case(
        settings("int-quantized", 8, "int", "tensor", symmetric=False),
        integers("tensor", asymmetric=True),
        _INT8,
        (7, 33),
    ),
    "ct int8 groups asymmetric": Case(
        settings("int-quantized", 8, "int", "group", symmetric=False, group_size=16),
        integers("group", 16, asymmetric=True),
        _INT8,
    ),
    "ct fp8 rows": Case(
        settings("float-quantized", 8, "float", "channel"), floats("channel"), _FP8, (7, 33)
    ),
    "ct fp8 tensor": Case(
        settings("float-quantized", 8, "float", "tensor"), floats("tensor"), _FP8, (7, 33)
    ),
    "ct fp8 blocks": Case(
        settings("float-quantized", 8, "float", "block", block_structure=[16, 16]),
        floats("block", 16),
        _FP8,
        (21, 40),
    ),
    "ct nvfp4": Case(
        settings("nvfp4-pack-quantized", 4, "float", "tensor_group", group_size=16),
        fp4(16),
        "compressed-tensors nvfp4-pack-quantized, FP4",
    ),
    "modelopt nvfp4": Case(
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        fp4(16, modelopt=True),
        "Model Optimizer NVFP4",
    ),
    "ct mxfp4": Case(
        settings("mxfp4-pack-quantized", 4, "float", "group", group_size=32),
        fp4(32),
        "compressed-tensors mxfp4-pack-quantized, FP4",
    ),
}
