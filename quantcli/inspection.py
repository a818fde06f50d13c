"""Look inside a GGUF file, a safetensors file or a checkpoint folder, reading headers only."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.checkpoint import SourceTensor, open_checkpoint
from quantcli.checkpoint.safetensors import SafetensorsFile
from quantcli.errors import AccessError, BadInputError
from quantcli.gguf_file import GGML_TYPES, read_header

GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class InspectedTensor:
    """One tensor as its file states it; shape in numpy order."""

    name: str
    type: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def weights(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Inspection:
    """What a file says about itself."""

    path: str
    format: str  # "GGUF v3", "safetensors", "checkpoint folder"
    metadata: Mapping[str, Any]
    tensors: list[InspectedTensor]

    @property
    def weights(self) -> int:
        """Number of weights in all tensors."""
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def bpw(self) -> float:
        """Bits of tensor data per weight."""
        return 8 * self.size_bytes / self.weights if self.weights else 0.0

    @property
    def types(self) -> dict[str, int]:
        """Bytes of tensor data by type, largest first."""
        totals: Counter[str] = Counter()
        for tensor in self.tensors:
            totals[tensor.type] += tensor.size_bytes
        return dict(totals.most_common())


def inspect(path: Path) -> Inspection:
    """Read the headers of a GGUF file, a safetensors file or a checkpoint folder.

    Raises:
        AccessError: when there is nothing at path.
        BadInputError: when it is broken or of another format.
    """
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise AccessError(f"{str(path)!r}: no such file or folder")
    if path.is_file():
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
        if magic == GGUF_MAGIC:
            return _gguf(path)
        if path.suffix == ".safetensors":
            return _safetensors(path)
    raise BadInputError(f"{str(path)!r} is neither a GGUF file, a .safetensors file nor a folder")


def _gguf(path: Path) -> Inspection:
    header = read_header(path)
    tensors = [
        InspectedTensor(entry.name, GGML_TYPES[entry.type_id].name, entry.shape, entry.nbytes)
        for entry in header.tensors.values()
    ]
    return Inspection(str(path), f"GGUF v{header.version}", header.metadata, tensors)


def _safetensors(path: Path) -> Inspection:
    header = SafetensorsFile(path.parent.resolve(), path.name).header
    return Inspection(str(path), "safetensors", header.metadata, _listed(header.tensors))


def _folder(path: Path) -> Inspection:
    checkpoint = open_checkpoint(str(path))
    return Inspection(
        str(path), "checkpoint folder", checkpoint.config, _listed(checkpoint.tensors)
    )


def _listed(tensors: Mapping[str, SourceTensor]) -> list[InspectedTensor]:
    return [InspectedTensor(t.name, t.dtype, t.shape, t.nbytes) for t in tensors.values()]
