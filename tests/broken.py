"""Checkpoints for tests, good and broken, made byte by byte without the safetensors package."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcli.checkpoint import open_checkpoint
from quantcli.errors import QuantcliError

CONFIG: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


def with_header(header: bytes, data: bytes = b"") -> bytes:
    """Return a file with this header, right or wrong, and this data."""
    return struct.pack("<Q", len(header)) + header + data


def describe(
    tensors: Mapping[str, np.ndarray], dtypes: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], bytes]:
    """Return header and data of a valid file; `dtypes` renames stored types (uint16 -> BF16)."""
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8", "int64": "I64"}
    header: dict[str, Any] = {}
    data = b""
    for name, array in tensors.items():
        dtype = (dtypes or {}).get(name, names[array.dtype.name])
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    return header, data


def safetensors(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return a valid file."""
    header, data = describe(tensors)
    return with_header(json.dumps(header).encode(), data)


def two_tensors() -> dict[str, np.ndarray]:
    """Return a BF16 tensor of 3 x 4 and a float32 tensor of 5, with values that tell rows apart."""
    values = np.arange(12, dtype=np.float32).reshape(3, 4) - 5.5
    bf16 = (values.view(np.uint32) >> 16).astype(np.uint16)
    return {"a.weight": bf16, "b.weight": np.linspace(-1, 1, 5, dtype=np.float32)}


def write_folder(folder: Path, config: object = CONFIG, **files: bytes) -> Path:
    """Write a folder with config.json and `files`; `__` in a keyword stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def write_single(folder: Path, content: bytes | None = None) -> Path:
    """Write a checkpoint of one file: `content`, or a valid one with `two_tensors`."""
    if content is None:
        content = safetensors(two_tensors())
    return write_folder(folder, model__safetensors=content)


def shard_name(index: int, count: int) -> str:
    return f"model-{index:05}-of-{count:05}.safetensors"


def write_shards(folder: Path, count: int = 3) -> Path:
    """Write a checkpoint of `count` shards with two tensors `t<shard>.a`, `t<shard>.b` each."""
    write_folder(folder)
    weight_map: dict[str, str] = {}
    for index in range(1, count + 1):
        tensors = {f"t{index}.{x}": np.full((2, 3), index, np.float32) for x in "ab"}
        (folder / shard_name(index, count)).write_bytes(safetensors(tensors))
        weight_map |= dict.fromkeys(tensors, shard_name(index, count))
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def refusal(folder: Path, kind: type[QuantcliError]) -> str:
    """Open `folder`, which must fail with `kind` and one short line; return that line."""
    with pytest.raises(QuantcliError) as caught:
        open_checkpoint(str(folder))
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message.isprintable()
    assert len(message) < 300
    return message


def read_index(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
