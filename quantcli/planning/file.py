"""One output of a conversion: its tensors, their types, and every byte of its size."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from quantcli.architectures import OutputTensor
from quantcli.gguf_file import Shard, Slot, data_bytes, plan_shards
from quantcli.recipes import Choice, FileType
from quantcli.tensor_types import TensorType

Metadata = dict[str, Any]


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of an output file: where it comes from and what it becomes."""

    origin: OutputTensor
    type: TensorType
    choice: Choice
    divergence: float | None = None  # see methods.sensitivity; None where it was not measured

    @property
    def name(self) -> str:
        """GGUF name."""
        return self.origin.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Numpy order: rows first, the contiguous dimension last."""
        return self.origin.shape

    @property
    def fallback(self) -> str | None:
        """Why the type is not the wanted one."""
        return self.choice.fallback

    @property
    def weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file, without padding."""
        return self.slot.nbytes

    @property
    def slot(self) -> Slot:
        """The tensor as the writer sees it."""
        return Slot(self.name, self.shape, self.type.ggml_id)


@dataclass(frozen=True)
class PlannedFile:
    """One output: a file, or a set of shards, of one file type."""

    file_type: FileType
    path: Path
    metadata: Metadata
    tensors: list[PlannedTensor]
    warnings: list[str]
    head_bytes: int  # size of the header, had it one file only
    split_max_bytes: int | None
    split_counts: tuple[int, ...] | None = None  # tensors of each shard, where those are kept

    @cached_property
    def shards(self) -> list[Shard]:
        """The files to write, to the byte; costs a second with a large vocabulary."""
        return plan_shards(
            self.path,
            self.metadata,
            self.slots,
            max_bytes=self.split_max_bytes,
            counts=self.split_counts,
        )

    @property
    def size_bytes(self) -> int:
        """All bytes on disk, headers and padding included."""
        if self.split_max_bytes is not None or self.split_counts is not None:
            return sum(shard.size for shard in self.shards)
        return self.head_bytes + data_bytes(self.metadata, self.slots)

    @property
    def bpw(self) -> float:
        """Bits of tensor data per weight."""
        data = sum(tensor.nbytes for tensor in self.tensors)
        return 8 * data / sum(tensor.weights for tensor in self.tensors)

    @property
    def slots(self) -> list[Slot]:
        """The tensors as the writer sees them."""
        return [tensor.slot for tensor in self.tensors]

    @property
    def choices(self) -> list[Choice]:
        """The tensors as the recipe sees them."""
        return [tensor.choice for tensor in self.tensors]
