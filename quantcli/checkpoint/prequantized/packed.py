"""What a quantized source is made of: formats, their weights, the stored parts of each weight."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.floats import to_float32
from quantcli.checkpoint.source_tensor import SourceTensor
from quantcli.errors import BadInputError, UnsupportedError

Tensors = Mapping[str, SourceTensor]
Settings = Mapping[str, Any]
Raw = Callable[[str], np.ndarray]  # name of a stored tensor -> a view of it as stored


class Parts:
    """The stored tensors of one weight by role, each mapped from when it is first asked for."""

    def __init__(self, tensors: Tensors, raw: Raw) -> None:
        self._tensors, self._raw = tensors, raw
        self._views: dict[str, np.ndarray] = {}

    def codes(self, role: str) -> np.ndarray:
        """A view as stored."""
        if role not in self._views:
            self._views[role] = np.asarray(self._raw(self._tensors[role].name))
        return self._views[role]

    def values(
        self, role: str, index: Any = (), shape: tuple[int, ...] | None = None
    ) -> np.ndarray:
        """Float32 copy of what `index` takes of a tensor, seen as of `shape`.

        Raises: BadInputError unless all are finite.
        """
        tensor = self._tensors[role]
        codes = self.codes(role)
        found = to_float32(codes.reshape(shape or codes.shape)[index], tensor.dtype)
        if not np.isfinite(found).all():
            bad = found[~np.isfinite(found)].flat[0]
            raise BadInputError(f"tensor {show(tensor.name)} holds {bad}: the checkpoint is broken")
        return found

    def groups(self, role: str, count: int) -> np.ndarray:
        """The group of each column (g_idx). Raises BadInputError unless all are below `count`."""
        groups = self.codes(role)
        wrong = (groups < 0) | (groups >= count)
        if wrong.any():
            raise self.refuse(role, f"names group {groups[wrong][0]} of {count}")
        return groups

    def refuse(self, role: str, what: str) -> BadInputError:
        """The error about a value of a part."""
        return BadInputError(f"tensor {show(self._tensors[role].name)} {what}")


@dataclass(frozen=True)
class PackedWeight(ABC):
    """A weight `name` of `shape` that is stored in `parts` (by role)."""

    name: str
    shape: tuple[int, int]
    parts: Tensors

    @abstractmethod
    def decode(self, parts: Parts, rows: np.ndarray) -> np.ndarray:
        """Float32 [len(rows), columns] of the rows with these numbers.

        Raises: BadInputError for values that mean nothing.
        """


@dataclass(frozen=True)
class Format(ABC):
    """A format, read from its settings in config.json; `title` is what a person calls it."""

    title: str

    @abstractmethod
    def find(self, tensors: Tensors, raw: Raw) -> Sequence[PackedWeight]:
        """All weights that are packed. `raw` is slow where only headers are here: for sizes.

        Raises: BadInputError (parts missing or of a wrong shape), UnsupportedError.
        """

    def ignores(self, name: str) -> bool:
        """Tell whether a tensor has nothing to say about weights."""
        return name.endswith(_OF_ACTIVATIONS)


# Scales of activations and of the key-value cache.
_OF_ACTIVATIONS = (
    ".input_scale",
    ".input_scale_ub",
    ".input_zero_point",
    ".input_global_scale",
    ".activation_scale",
    ".output_scale",
    ".output_zero_point",
    ".q_scale",
    ".k_scale",
    ".v_scale",
)


def part(
    tensors: Tensors, name: str, dtypes: Collection[str], *shapes: tuple[int, ...]
) -> SourceTensor:
    """The stored tensor `name`, which must be of one of `dtypes` and, if given, `shapes`.

    Raises: BadInputError (missing, another shape), UnsupportedError (another dtype).
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise BadInputError(f"tensor {show(name)} is missing: the quantized weight needs it")
    if tensor.dtype not in dtypes:
        raise UnsupportedError(
            f"tensor {show(name)} is {tensor.dtype}; only {', '.join(dtypes)} is supported there"
        )
    if shapes and tensor.shape not in shapes:
        expected = " or ".join(map(str, shapes))
        raise BadInputError(f"tensor {show(name)} has shape {tensor.shape} instead of {expected}")
    return tensor


def matrix(tensors: Tensors, name: str, dtypes: Collection[str]) -> SourceTensor:
    """The stored tensor `name`, which must have rows and columns. Raises as `part`."""
    tensor = part(tensors, name, dtypes)
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise BadInputError(f"tensor {show(name)} has shape {tensor.shape}, which is no matrix")
    return tensor


def kind_of(name: str, tensor: SourceTensor) -> tuple[str, int]:
    """The same for the tensors of one name and size in all blocks.

    For sizes that only values tell: read for one of each kind when opening, checked when decoding.
    """
    return re.sub(r"\d+", "0", name), tensor.nbytes


def setting(settings: Settings, key: str, allowed: Collection[Any], default: Any = None) -> Any:
    """A value of quantization_config. Raises UnsupportedError unless it is one of `allowed`."""
    value = settings.get(key, default)
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise UnsupportedError(
            f"quantization_config in config.json: {show(settings.get('quant_method'))} with"
            f" {show(key)} = {show(value)} is not supported"
            f" (only {', '.join(map(repr, allowed))}): give the original instead"
        )
    return value


def group_size(settings: Settings, key: str = "group_size") -> int | None:
    """Columns that share a scale, None for all. Raises BadInputError."""
    value = settings.get(key)
    value = -1 if value is None else value
    if type(value) is not int or not (value == -1 or 0 < value < 1 << 40):
        raise BadInputError(
            f"quantization_config in config.json: {show(key)} = {show(value)} is no number of"
            " columns"
        )
    return None if value == -1 else value
