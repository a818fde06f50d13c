"""Small GGUF files to convert from: every kind of tensor and of metadata, whole or in parts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.gguf_file import Slot, Writer
from quantcli.tensor_types import stored

BLOCKS, EXPERTS, N = 4, 4, 256
Tensors = dict[str, tuple[np.ndarray, str]]  # values and type by name, in file order

ODD_VALUES: dict[str, Any] = {
    "odd.u8": np.uint8(200),
    "odd.i8": np.int8(-3),
    "odd.u16": np.uint16(60000),
    "odd.i16": np.int16(-30000),
    "odd.i32": np.int32(-5),
    "odd.f32": np.float32(0.1),
    "odd.f64": np.float64(0.1),
    "odd.u64": np.uint64(2**63 + 1),
    "odd.i64": np.int64(-(2**62)),
    "odd.bool": True,
    "odd.text": "zwölf 🦙",
    "odd.bytes": np.array([1, 2, 255], np.uint8),
    "odd.longs": np.array([-1, 2**40], np.int64),
    "odd.doubles": np.array([0.1, -2.0]),
    "odd.flags": np.array([True, False, True]),
    "odd.texts": ["", "a", "ß"],
}


def metadata(arch: str = "olmoe", **more: Any) -> dict[str, Any]:
    """Hyperparameters, with keys of quantized files in their midst, a tokenizer and odd values."""
    return {
        "general.architecture": arch,
        "general.name": "Odd One",
        "general.file_type": np.uint32(1),
        f"{arch}.block_count": np.uint32(BLOCKS),
        f"{arch}.context_length": np.uint32(64),
        f"{arch}.embedding_length": np.uint32(N),
        f"{arch}.feed_forward_length": np.uint32(N),
        f"{arch}.attention.head_count": np.uint32(8),
        f"{arch}.attention.head_count_kv": np.uint32(2),
        f"{arch}.attention.layer_norm_rms_epsilon": np.float32(1e-5),
        f"{arch}.expert_count": np.uint32(EXPERTS),
        f"{arch}.expert_used_count": np.uint32(2),
        **ODD_VALUES,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [chr(97 + i) for i in range(16)],
        "tokenizer.ggml.token_type": np.ones(16, np.int32),
        **more,
    }


def tensors(kind: str = "F16", *, tied: bool = False, seed: int = 1) -> Tensors:
    """A mixture of experts whose matrices are stored as `kind`, in no order of names."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {"token_embd.weight": ((16, N), kind)}
    for i in reversed(range(BLOCKS)):
        block = {
            "attn_norm.weight": ((N,), "F32"),
            **{f"attn_{part}.weight": ((8, N), kind) for part in ("v", "q", "k", "output")},
            "ffn_gate_inp.weight": ((EXPERTS, N), "F32"),
            "ffn_up_exps.weight": ((EXPERTS, 8, N), kind),
            "ffn_down_exps.weight": ((EXPERTS, 8, N), kind),
            "ffn_gate_tid2eid.weight": ((2, 16), "I32"),
        }
        shapes |= {f"blk.{i}.{name}": each for name, each in block.items()}
    shapes["output_norm.weight"] = ((N,), "F32")
    if not tied:
        shapes["output.weight"] = ((16, N), kind)
    return {
        name: (np.round(rng.standard_normal(shape), 3).astype(np.float32), stored_as)
        for name, (shape, stored_as) in shapes.items()
    }


def write(
    path: Path, keys: dict[str, Any], content: Tensors, counts: Sequence[int] | None = None
) -> Path:
    """Write a file, or one for each of `counts`, its number of tensors; returns the first."""
    slots = [Slot(name, w.shape, stored(kind).ggml_id) for name, (w, kind) in content.items()]
    with Writer(path, keys, slots, split_counts=counts) as out:
        for name, (w, kind) in content.items():
            out.write(name, _packed(w, kind))
        return out.commit()[0].path


def _packed(w: np.ndarray, kind: str) -> np.ndarray:
    if kind == "I32":
        return (w * 1000).astype("<i4")
    return stored(kind).encode(w.reshape(-1, w.shape[-1]))


def cases(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Sources, and how to convert them, that llama-quantize can do as well: see the record."""
    counts = [0, 9, 25, 5]
    whole = write(folder / "whole.gguf", metadata(), tensors())
    parts = write(folder / "parts.gguf", metadata(), tensors(), counts)
    floats = write(folder / "floats.gguf", metadata(), tensors("F32", tied=True))
    eight = write(folder / "eight.gguf", metadata(), tensors("Q8_0"))
    return {
        "whole": (whole, {"file_type": "Q4_K_M"}),
        "whole-F32": (whole, {"file_type": "F32"}),
        "whole-leave-output": (whole, {"file_type": "Q2_K", "leave_output_tensor": True}),
        "parts": (parts, {"file_type": "Q3_K_M"}),
        "parts-kept": (parts, {"file_type": "Q4_K_M", "keep_split": True}),
        "tied": (floats, {"file_type": "Q4_K_M"}),
        "tied-BF16": (floats, {"file_type": "BF16"}),
        "twice": (eight, {"file_type": "Q5_0", "allow_requantize": True}),
        "same": (eight, {"file_type": "Q8_0"}),
    }
