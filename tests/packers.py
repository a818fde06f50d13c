"""Packers of tests/packing.py by format, and the cases that every test of theirs goes through."""

import numpy as np
from packing import Case, Packed, Packer, bf16, e4m3, scales_of

# --- FP8 -----------------------------------------------------------------------------------------


def fp8(scale: str, suffix: str, block: tuple[int, int] = (1, 1), dtype: str = "F32") -> Packer:
    """`scale`: of the whole "tensor", each "row", or each "block"."""

    def pack(random: np.random.Generator, rows: int, columns: int) -> Packed:
        codes, values = e4m3(random, (rows, columns))
        shape = {
            "tensor": (),
            "row": (rows, 1),
            "block": (-(-rows // block[0]), -(-columns // block[1])),
        }[scale]
        stored = scales = scales_of(random, shape)
        if dtype == "BF16":
            stored, scales = bf16(scales)
        elif dtype == "F8_E8M0":
            stored = random.integers(100, 120, shape, np.uint8)
            scales = np.exp2(stored.astype(np.float64) - 127).astype(np.float32)
        w = np.empty((rows, columns), np.float32)
        for i in range(rows):
            for j in range(columns):
                at = {"tensor": (), "row": (i, 0), "block": (i // block[0], j // block[1])}[scale]
                w[i, j] = np.float32(values[i, j]) * np.float32(scales[at])
        return Packed({"weight": ("F8_E4M3", codes), suffix: (dtype, stored)}, w)

    return pack


_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
_BLOCK = _FP8 | {"weight_block_size": [16, 32]}

FP8 = {
    "fp8 tensor": Case(_FP8, fp8("tensor", "weight_scale"), "FP8"),
    "fp8 tensor inverse": Case(
        _FP8 | {"activation_scheme": "static"}, fp8("tensor", "weight_scale_inv"), "FP8"
    ),
    "fp8 row": Case({"quant_method": "fbgemm_fp8"}, fp8("row", "weight_scale"), "FP8", (7, 33)),
    "fp8 block": Case(
        _BLOCK, fp8("block", "weight_scale_inv", (16, 32)), "FP8 in blocks of 16x32", (48, 96)
    ),
    "fp8 block cut off": Case(
        _BLOCK,
        fp8("block", "weight_scale_inv", (16, 32), "BF16"),
        "FP8 in blocks of 16x32",
        (37, 71),
    ),
    "fp8 block powers": Case(
        _BLOCK, fp8("block", "weight_scale_inv", (16, 32), "F8_E8M0"), "FP8 in blocks of 16x32"
    ),
}

CASES: dict[str, Case] = {**FP8}
