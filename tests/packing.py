"""Checkpoints whose weights are quantized: random codes, packed number by number.

A packer makes one weight: its stored parts, and its values by the definition of the format. None
of it uses the product's code, and none is vectorised over bits.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from broken import with_header
from tiny_models import build

from quantcli.checkpoint import Checkpoint, open_checkpoint

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass(frozen=True)
class Packed:
    """Stored parts {suffix of the layer's name: (dtype, array)}, and the float32 values."""

    parts: dict[str, tuple[str, np.ndarray]]
    w: np.ndarray


Packer = Callable[[np.random.Generator, int, int], Packed]
Stored = dict[str, tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """A format: quantization_config, how weights are packed, a size (rows, columns) it may have.

    `title`: what the warning calls it.
    """

    settings: dict[str, Any]
    packer: Packer
    title: str
    shape: tuple[int, int] = (24, 64)


# --- numbers, one at a time ----------------------------------------------------------------------


def bf16(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stored uint16 and the float32 values they stand for: the upper halves."""
    codes = (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return codes, (codes.astype(np.uint32) << 16).view(np.float32)


def small_float(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """The value of an OCP number from its fields; not for codes of NaN."""
    bias = (1 << (exponent_bits - 1)) - 1
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1)
    fraction = (code & ((1 << mantissa_bits) - 1)) * 2.0**-mantissa_bits
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - bias)
    return sign * (1 + fraction) * 2.0 ** (exponent - bias)


def e4m3(random: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Random codes of F8_E4M3 without NaN, and their values."""
    codes = random.integers(0, 256, shape, np.uint8)
    codes[codes & 0x7F == 0x7F] = 0x81
    values = np.array([0.0 if c & 0x7F == 0x7F else small_float(c, 4, 3) for c in range(256)])
    return codes, values.astype(np.float32)[codes]


def words(codes: list[int], bits: int) -> list[int]:
    """A bit stream in little-endian 32-bit words: number i begins at bit i * bits."""
    stream = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    return [stream >> (32 * i) & 0xFFFFFFFF for i in range(-(-len(codes) * bits // 32))]


def packed_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """Int32: each row as such a stream."""
    return np.array([words(list(row), bits) for row in codes], np.uint32).view(np.int32)


def scales_of(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Positive float32, no two alike."""
    return random.uniform(0.001, 0.02, shape).astype(np.float32)


# --- files ---------------------------------------------------------------------------------------


def write_safetensors(path: Path, tensors: Stored) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, array) in tensors.items():
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    path.write_bytes(with_header(json.dumps(header).encode(), data))


def read_metadata(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file."""
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def read_stored(path: Path) -> Stored:
    """The tensors of a safetensors file as stored: uint16 for BF16, uint8 for FP8."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    kinds = {"BF16": "<u2", "F16": "<f2", "F32": "<f4", "I64": "<i8", "I32": "<i4", "I8": "i1"}
    kinds |= {"U8": "u1", "F8_E4M3": "u1", "F8_E8M0": "u1"}
    found: Stored = {}
    for name, entry in json.loads(data[8:end]).items():
        if name != "__metadata__":
            begin, stop = entry["data_offsets"]
            array = np.frombuffer(data[end + begin : end + stop], kinds[entry["dtype"]])
            found[name] = entry["dtype"], array.reshape(entry["shape"])
    return found


def write_parts(folder: Path, settings: Mapping[str, Any], parts: Stored) -> Path:
    """A checkpoint of one layer "a"; not a whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "quantization_config": dict(settings)}
    (folder / "config.json").write_text(json.dumps(config))
    stored = {f"a.{suffix}": part for suffix, part in parts.items()}
    write_safetensors(folder / "model.safetensors", stored)
    return folder


def opened(folder: Path, case: Case, packed: Packed) -> Checkpoint:
    return open_checkpoint(str(write_parts(folder, case.settings, packed.parts)))


def write_pair(
    root: Path,
    case: Case,
    shards: int = 1,
    *,
    model: tuple[str, str] = ("llama", "gqa"),
    **changes: Any,
) -> tuple[Path, Path]:
    """A tiny model whose linears are packed, and the same with their values as F32."""
    random = np.random.default_rng(7)
    plain = build(root / "plain" / "tiny", *model, **SMALL, **changes)
    stored = read_stored(plain / "model.safetensors")
    values: Stored = {}
    parts: Stored = {}
    for name, (dtype, array) in stored.items():
        if not name.endswith(("_proj.weight", ".wqkv.weight")):
            values[name] = parts[name] = dtype, array
            continue
        packed = case.packer(random, *array.shape)
        values[name] = "F32", packed.w
        stem = name.removesuffix("weight")
        parts |= {stem + suffix: part for suffix, part in packed.parts.items()}
    write_safetensors(plain / "model.safetensors", values)
    folder = root / "packed" / "tiny"
    build(folder, *model, **SMALL, **changes)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = case.settings
    (folder / "config.json").write_text(json.dumps(config))
    if shards > 1:
        (folder / "model.safetensors").unlink()
        _write_shards(folder, parts, shards)
    else:
        write_safetensors(folder / "model.safetensors", parts)
    return folder, plain


def _write_shards(folder: Path, tensors: Stored, count: int) -> None:
    """Tensors dealt out in turn, so that the parts of a weight are in different files."""
    names = list(tensors)
    where: dict[str, str] = {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in names[i::count]})
        where |= dict.fromkeys(names[i::count], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
