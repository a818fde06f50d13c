"""One model, whatever it came from: GGUF names, GGUF metadata, float32 rows on demand.

A checkpoint seen through its family, or a GGUF file decoded; values are read when asked for.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from quantcli.architectures import Architecture, OutputTensor, find
from quantcli.checkpoint import Checkpoint, GgufOnlyError, gguf_choice, open_checkpoint
from quantcli.checkpoint.pooling import pooling_type
from quantcli.checkpoint.safetensors import to_float32
from quantcli.errors import BadInputError, UnsupportedError, UsageError
from quantcli.gguf_file import TensorEntry, read_split
from quantcli.gguf_source import GgufWeights, fetch_gguf, is_gguf
from quantcli.progress import Progress
from quantcli.tensor_types import by_id
from quantcli.tokenizer import read_tokenizer

RUN_WEIGHTS = 1 << 20  # of a stack of matrices, read at once

Metadata = dict[str, Any]
Rows = slice | np.ndarray | None


class Model(Protocol):
    """Tensors under their GGUF names: `shapes` in numpy order, `types` as ggml calls them."""

    @property
    def metadata(self) -> Metadata: ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def types(self) -> Mapping[str, str]: ...

    def rows(self, name: str, rows: Rows = None) -> np.ndarray:
        """Values as float32: [rows, n] of a matrix, [n] of a vector (it is one row).

        A stack of matrices is one matrix, their rows below each other.
        rows: a slice, or numbers of rows; None for all.

        Raises BadInputError (no such tensor, file changed), AccessError.
        """

    def packed(self, name: str, rows: slice) -> np.ndarray:
        """Rows of a tensor that is quantized already, as GGUF has them, uint8 [rows, row_bytes]."""


class CheckpointModel:
    """A checkpoint as the GGUF file it becomes; its values are exact, so all types are "F32"."""

    def __init__(
        self, checkpoint: Checkpoint, origins: Sequence[OutputTensor], metadata: Metadata
    ) -> None:
        self.metadata = metadata
        self.shapes = {origin.name: origin.shape for origin in origins}
        self.types = dict.fromkeys(self.shapes, "F32")
        self._checkpoint = checkpoint
        self._origins = {origin.name: origin for origin in origins}

    def rows(self, name: str, rows: Rows = None) -> np.ndarray:
        """Rows of a tensor, permuted and shifted as its family wants; see Model."""
        origin = _get(self._origins, name, self._checkpoint.id)
        if len(origin.shape) < 2:
            rows = None
        if origin.data is not None:
            return origin.data if rows is None else origin.data[rows]
        if origin.stack:
            return self._stacked(origin, rows)
        if origin.source is None:
            raise RuntimeError(f"{name!r} has neither source nor data")
        if origin.turned:
            return self._turned(origin, rows)
        chosen = rows
        if origin.rows is not None:
            chosen = origin.rows if rows is None else origin.rows[rows]
        if origin.transposed:
            w = self._columns(origin.source, chosen)
        else:
            w = self._checkpoint.float32(origin.source, chosen)
        return w + np.float32(origin.add) if origin.add else w

    def packed(self, name: str, rows: slice) -> np.ndarray:
        """Rows of a tensor that keeps its bytes, as GGUF stores them, uint8 [rows, row_bytes]."""
        origin = self._origins[name]
        if not origin.stack:
            return np.asarray(self._checkpoint.raw(name)[rows])
        numbers = np.arange(rows.start, rows.stop)
        runs = _runs(numbers, origin.shape[1], len(numbers))
        return np.concatenate([self._checkpoint.raw(origin.stack[m])[run] for _, m, run in runs])

    def _columns(self, source: str, columns: Rows) -> np.ndarray:
        """Columns of a stored matrix as rows; no other values are copied."""
        raw = self._checkpoint.raw(source)
        chosen = raw if columns is None else raw[:, columns]
        return to_float32(np.ascontiguousarray(chosen.T), self._checkpoint.tensors[source].dtype)

    def _stacked(self, origin: OutputTensor, rows: Rows) -> np.ndarray:
        """Rows of a stack, read in runs of one matrix."""
        numbers, found = _asked(origin.shape, rows)
        for here, matrix, run in _runs(numbers, origin.shape[1], RUN_WEIGHTS // found.shape[1]):
            found[here] = self._checkpoint.float32(origin.stack[matrix], run)
        return found

    def _turned(self, origin: OutputTensor, rows: Rows) -> np.ndarray:
        """Rows of matrices that the checkpoint has as columns: whole ones are read."""
        if origin.source is None or origin.rows is None:
            raise RuntimeError(f"{origin.name!r} has no rows to turn")
        numbers, found = _asked(origin.shape, rows)
        columns = origin.rows.reshape(origin.shape[0], -1)
        for here, matrix, run in _runs(numbers, origin.shape[1], len(numbers)):
            found[here] = self._checkpoint.float32(origin.source, columns[matrix]).T[run]
        return found


class GgufModel:
    """A GGUF file, or the first of its shards."""

    def __init__(self, path: Path) -> None:
        """Read headers only.

        Raises AccessError, BadInputError, and UnsupportedError for a tensor type without decoder.
        """
        header = read_split(path)
        self.metadata: Metadata = dict(header.metadata)
        self.shapes = {name: entry.shape for name, entry in header.tensors.items()}
        self.types = {name: _type_name(entry) for name, entry in header.tensors.items()}
        self._path = path
        self._entries = header.tensors
        self._weights = GgufWeights(header.tensors, path.parent)

    def rows(self, name: str, rows: Rows = None) -> np.ndarray:
        """Rows of a tensor, decoded; see Model."""
        entry = _get(self._entries, name, str(self._path))
        return self._weights.float32(entry.name, rows)

    def packed(self, name: str, rows: slice) -> np.ndarray:
        """See Model."""
        return np.asarray(self._weights.raw(name)[rows])


def open_model(
    source: str, revision: str | None = None, progress: Progress | None = None
) -> CheckpointModel | GgufModel:
    """A *.gguf file, a checkpoint folder, or `org/name[:file.gguf]` on the hub, as a Model.

    Raises: see open_checkpoint, fetch_gguf, architectures.find, read_tokenizer, GgufModel.
    """
    if is_gguf(source):
        if revision is not None:
            raise UsageError(f"--revision is for hub models, but {source!r} is a file")
        return GgufModel(Path(source))
    if (chosen := gguf_choice(source)) is not None:
        return GgufModel(fetch_gguf(*chosen, revision, progress))
    try:
        checkpoint = open_checkpoint(source, revision=revision, progress=progress)
    except GgufOnlyError:
        return GgufModel(fetch_gguf(source, None, revision, progress))
    family = find(checkpoint.config)
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    origins = family.tensors(checkpoint.config, shapes)
    vocabulary = next(o.shape[0] for o in origins if o.name == "token_embd.weight")
    metadata = {
        **family_metadata(family, checkpoint),
        **read_tokenizer(checkpoint, vocabulary),
        **family.tokenizer,
    }
    return CheckpointModel(checkpoint, origins, metadata)


def family_metadata(family: Architecture, checkpoint: Checkpoint) -> Metadata:
    """What Architecture.metadata says, and how hidden states are pooled where they are embeddings.

    Raises: see there and pooling_type.
    """
    keys = family.metadata(checkpoint.config)
    if family.wiring is not None and family.wiring.embeds:
        kind = pooling_type(checkpoint)
        keys |= {} if kind is None else {f"{family.gguf}.pooling_type": kind}
    return keys


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, columns) of any shape; a vector is one row."""
    return math.prod(shape[:-1]), shape[-1] if shape else 1


def stacked(shape: tuple[int, ...]) -> int:
    """How many matrices a tensor holds."""
    return math.prod(shape[:-2])


def _asked(shape: tuple[int, ...], rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of rows of a stack, and room for their values."""
    total, n = matrix_shape(shape)
    numbers = np.arange(total)[slice(None) if rows is None else rows]
    return numbers, np.empty((len(numbers), n), np.float32)


def _runs(numbers: np.ndarray, height: int, most: int) -> Iterator[tuple[slice, int, np.ndarray]]:
    """Runs of one matrix, of at most `most` rows: (where in numbers, matrix, its rows)."""
    start = 0
    while start < len(numbers):
        matrix = numbers[start] // height
        run = numbers[start : start + max(1, most)] - matrix * height
        other = (run < 0) | (run >= height)
        run = run[: other.argmax()] if other.any() else run
        yield slice(start, start + len(run)), matrix, run
        start += len(run)


def _get(tensors: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in tensors:
        raise BadInputError(f"{where!r} lacks the tensor {name!r}")
    return tensors[name]


def _type_name(entry: TensorEntry) -> str:
    try:
        return by_id(entry.type_id).name
    except UnsupportedError as error:
        raise UnsupportedError(f"{entry.path}: tensor {entry.name!r}: {error}") from None
