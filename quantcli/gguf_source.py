"""A GGUF file, or the first of its shards, as a source: its tensors have their final names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantcli.architectures import OutputTensor
from quantcli.checkpoint import Checkpoint, SourceTensor
from quantcli.checkpoint.files import Folder, show
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.gguf_file import GGML_TYPES, TensorEntry, read_split, read_tensor, without_number
from quantcli.recipes.choose import usual_order
from quantcli.tensor_types import by_id, stored_names

Metadata = dict[str, Any]
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


def is_gguf(source: str) -> bool:
    """Whether a source is meant as a GGUF file."""
    return source.endswith(".gguf") and not Path(source).is_dir()


@dataclass(frozen=True)
class GgufSource:
    """An opened GGUF model; `files` are the names of the tensors of each file, in file order."""

    checkpoint: Checkpoint
    metadata: Metadata  # without what says how it was split
    files: list[list[str]]

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.metadata["general.architecture"])

    @property
    def types(self) -> dict[str, str]:
        """The ggml type of each tensor."""
        return {name: tensor.dtype for name, tensor in self.checkpoint.tensors.items()}

    def origins(self, keep_split: bool) -> list[OutputTensor]:
        """Every tensor as it is, in llama-quantize's order: by block, or else file by file."""
        shapes = {name: tensor.shape for name, tensor in self.checkpoint.tensors.items()}
        order = [name for file in self.files for name in file]
        if not keep_split:
            order = sorted(order, key=usual_order)
        return [OutputTensor(name, shapes[name], source=name) for name in order]


class GgufWeights:
    """The tensors of GGUF files, mapped and decoded on demand; a matrix has rows of its last axis.

    `homes` are the names of the files.
    """

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.homes = {name: entry.path.name for name, entry in entries.items()}
        self._entries = entries

    def raw(self, name: str) -> np.ndarray:
        """Packed rows, u8[rows, row_bytes]."""
        return read_tensor(self._entries[name])

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        """Float32 [rows, n] of a matrix, [n] of a vector."""
        entry = self._entries[name]
        packed = read_tensor(entry)
        w = by_id(entry.type_id).decode(np.asarray(packed if rows is None else packed[rows]))
        return w.reshape(-1) if len(entry.shape) < 2 else w


def open_gguf(path: Path) -> GgufSource:
    """Open and validate a GGUF model; reads headers only.

    Raises:
        AccessError, BadInputError: as read_split; for a file without tensors or architecture.
        UnsupportedError: for what is no language model.
    """
    header = read_split(path)
    _check_is_model(path, header.metadata)
    if not header.tensors:
        raise BadInputError(f"{path}: no tensors; is this a vocabulary only?")
    tensors = {
        name: SourceTensor(name, GGML_TYPES[entry.type_id].name, entry.shape, entry.nbytes)
        for name, entry in header.tensors.items()
    }
    weights = GgufWeights(header.tensors)
    checkpoint = Checkpoint(
        id=without_number(path).removesuffix(".gguf"),
        revision=None,
        config={},
        tensors=tensors,
        side_files=Folder(path.parent, tuple(file.name for file in header.files)),
        weights=weights,
        source_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        readable=stored_names(),
    )
    files = [[n for n, entry in header.tensors.items() if entry.path == f] for f in header.files]
    metadata = {key: v for key, v in header.metadata.items() if key not in SPLIT_KEYS}
    return GgufSource(checkpoint, metadata, files)


def _check_is_model(path: Path, metadata: Mapping[str, Any]) -> None:
    kind = metadata.get("general.type", "model")
    architecture = metadata.get("general.architecture")
    if kind != "model" or architecture == "clip":
        raise UnsupportedError(
            f"{path}: general.type {show(kind)} is not a language model: use the file as it is"
        )
    if not isinstance(architecture, str) or not architecture.isprintable() or not architecture:
        raise BadInputError(f"{path}: general.architecture is {show(architecture)}, not a name")
