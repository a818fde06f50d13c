"""Packers of tests/packing.py by format, and the cases that every test of theirs goes through."""

import json

import numpy as np
from packers_compressed import COMPRESSED
from packing import Case, Packed, Packer, bf16, e4m3, packed_rows, scales_of

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
    "fp8 modelopt": Case(
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        fp8("tensor", "weight_scale"),
        "Model Optimizer FP8",
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

# --- GPTQ and AWQ --------------------------------------------------------------------------------


def gptq(
    bits: int, group: int, version: int = 1, act_order: bool = False, g_idx: bool = True
) -> Packer:
    """`group`: -1 for one of all columns. Zero points as low as 1, and of version 2 as 0."""

    def pack(random: np.random.Generator, rows: int, columns: int) -> Packed:
        codes = random.integers(0, 1 << bits, (rows, columns))
        groups = np.arange(columns) // (columns if group < 0 else group)
        count = groups[-1] + 1
        if act_order:
            groups = random.permutation(groups)
        zeros = random.integers(2 - version, 1 << bits, (count, rows))
        scales = scales_of(random, (count, rows)).astype(np.float16)
        w = np.empty((rows, columns), np.float32)
        for o in range(rows):
            for i in range(columns):
                g = groups[i]
                w[o, i] = float(scales[g, o]) * (int(codes[o, i]) - int(zeros[g, o]))
        parts = {
            "qweight": ("I32", np.ascontiguousarray(packed_rows(codes, bits).T)),
            "qzeros": ("I32", packed_rows(zeros - (version == 1), bits)),
            "scales": ("F16", scales),
        }
        if g_idx:
            parts["g_idx"] = "I32", groups.astype(np.int32)
        return Packed(parts, w)

    return pack


def with_bias(packer: Packer, value: float) -> Packer:
    """As AutoGPTQ stores it, where the model has none."""

    def pack(random: np.random.Generator, rows: int, columns: int) -> Packed:
        made = packer(random, rows, columns)
        return Packed(made.parts | {"bias": ("F16", np.full(rows, value, np.float16))}, made.w)

    return pack


def awq(group: int) -> Packer:
    """`group`: -1 for one of all columns."""

    def words(codes: np.ndarray) -> np.ndarray:
        found = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
        for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
            found |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * nibble)
        return found.view(np.int32)

    def pack(random: np.random.Generator, rows: int, columns: int) -> Packed:
        size = columns if group < 0 else group
        codes = random.integers(0, 16, (columns, rows))
        zeros = random.integers(0, 16, (columns // size, rows))
        scales = scales_of(random, zeros.shape).astype(np.float16)
        w = np.empty((rows, columns), np.float32)
        for o in range(rows):
            for i in range(columns):
                g = i // size
                w[o, i] = float(scales[g, o]) * (int(codes[i, o]) - int(zeros[g, o]))
        stored = {"qweight": ("I32", words(codes)), "qzeros": ("I32", words(zeros))}
        return Packed(stored | {"scales": ("F16", scales)}, w)

    return pack


def _gptq(bits: int, group: int, **more: object) -> dict[str, object]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group} | more


GPTQ = {
    f"gptq {bits} bits": Case(
        _gptq(bits, 32, sym=True, desc_act=False),
        gptq(bits, 32),
        f"GPTQ of {bits} bits",
        (64, 96),
    )
    for bits in (2, 3, 4, 8)
}
GPTQ |= {
    f"gptq act-order {bits} bits": Case(
        _gptq(bits, 32, sym=False, desc_act=True, checkpoint_format="gptq_v2"),
        gptq(bits, 32, version=2, act_order=True),
        f"GPTQ of {bits} bits",
        (32, 160),
    )
    for bits in (2, 3, 4, 8)
}
GPTQ |= {
    "gptq of zero biases": Case(
        _gptq(4, 32), with_bias(gptq(4, 32), 0.0), "GPTQ of 4 bits", (8, 32)
    ),
    "gptq of one group": Case(_gptq(4, -1), gptq(4, -1), "GPTQ of 4 bits", (8, 24)),
    "gptq of groups that do not divide": Case(
        _gptq(4, 40, format="gptq", dynamic={"-:.*lm_head.*": {}}),
        gptq(4, 40, act_order=True),
        "GPTQ of 4 bits",
        (8, 104),
    ),
    "gptq without g_idx": Case(_gptq(4, 40), gptq(4, 40, g_idx=False), "GPTQ of 4 bits", (8, 104)),
}
_AWQ = {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"}
AWQ = {
    "awq": Case(_AWQ | {"group_size": 16}, awq(16), "AWQ of 4 bits"),
    "awq of one group": Case(_AWQ | {"group_size": -1}, awq(-1), "AWQ of 4 bits", (16, 19)),
}

# --- bitsandbytes --------------------------------------------------------------------------------

# QLoRA (Dettmers et al. 2023), appendix E; bitsandbytes' kDequantizeFP4: sign, then 3 bits.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
_HALF = (0.0, 0.0052083333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25)
FP4 = (*_HALF, *(-value for value in _HALF))


def four_bits(kind: str, block: int, nested: int | None = None) -> Packer:
    """`block`: numbers that share a scale; `nested`: scales that share one."""

    def pack(random: np.random.Generator, rows: int, columns: int) -> Packed:
        table = np.array(NF4 if kind == "nf4" else FP4, np.float32)
        codes = random.integers(0, 16, rows * columns)
        blocks = -(-codes.size // block)
        state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16"}
        state["shape"] = [rows, columns]
        parts: dict[str, tuple[str, np.ndarray]] = {}
        if nested is None:
            absmax = scales_of(random, (blocks,))
            parts["weight.absmax"] = "F32", absmax
        else:
            small = random.integers(0, 256, blocks, np.uint8)
            second = np.linspace(-1, 1, 256, dtype=np.float32) ** 3
            above = scales_of(random, (-(-blocks // nested),))
            offset = random.uniform(0.01, 0.09)
            absmax = np.empty(blocks, np.float32)
            for i in range(blocks):
                absmax[i] = second[small[i]] * above[i // nested] + np.float32(offset)
            state |= {"nested_blocksize": nested, "nested_dtype": "float32"}
            state["nested_offset"] = offset
            parts["weight.absmax"] = "U8", small
            parts["weight.nested_absmax"] = "F32", above
            parts["weight.nested_quant_map"] = "F32", second
        w = np.array([table[c] * absmax[i // block] for i, c in enumerate(codes)], np.float32)
        pairs = [*codes, 0]
        stored = [16 * pairs[i] + pairs[i + 1] for i in range(0, codes.size, 2)]
        text = np.frombuffer(json.dumps(state).encode(), np.uint8)
        parts |= {
            "weight": ("U8", np.array(stored, np.uint8)[:, None]),
            "weight.quant_map": ("F32", table),
            f"weight.quant_state.bitsandbytes__{kind}": ("U8", text),
        }
        return Packed(parts, w.reshape(rows, columns))

    return pack


def eight_bits(random: np.random.Generator, rows: int, columns: int) -> Packed:
    codes = random.integers(-127, 128, (rows, columns)).astype(np.int8)
    scales = 127 * scales_of(random, (rows,))
    w = np.empty((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            w[i, j] = np.float32(codes[i, j]) * scales[i] * np.float32(1 / 127)
    parts = {"weight": ("I8", codes), "SCB": ("F32", scales)}
    return Packed(parts | {"weight_format": ("U8", np.array(0, np.uint8))}, w)


def _bnb4(kind: str) -> dict[str, object]:
    return {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}


BITSANDBYTES = {
    "bnb nf4": Case(_bnb4("nf4"), four_bits("nf4", 64), "bitsandbytes NF4"),
    "bnb nf4 nested": Case(_bnb4("nf4"), four_bits("nf4", 16, 8), "bitsandbytes NF4", (9, 48)),
    "bnb nf4 nested odd": Case(_bnb4("nf4"), four_bits("nf4", 64, 4), "bitsandbytes NF4", (7, 61)),
    "bnb fp4 odd": Case(_bnb4("fp4"), four_bits("fp4", 32), "bitsandbytes FP4", (7, 35)),
    "bnb int8": Case(
        {"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bits, "bitsandbytes int8"
    ),
}

CASES: dict[str, Case] = {**FP8, **GPTQ, **AWQ, **BITSANDBYTES, **COMPRESSED}
