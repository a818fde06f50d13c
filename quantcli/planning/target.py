"""A file for a budget of bytes: what the budget is, and the types that fill it.

Before weights are read the types are a guess, of the right size; see methods.sensitivity for what
takes its place.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantcli.errors import UsageError
from quantcli.gguf_file import data_bytes
from quantcli.planning.file import PlannedFile, PlannedTensor
from quantcli.planning.ram import running
from quantcli.recipes import Choice, Recipe
from quantcli.recipes.allocate import Point, allocate
from quantcli.recipes.choose import fitting
from quantcli.recipes.unquantized import is_quantizable
from quantcli.tensor_types import TensorType, get

# The types that a tensor may get, as far as its rows allow.
CANDIDATES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
# The file types whose names and ids stand for a file of about their size.
NEAREST = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M"),
    *("Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"),
)
MOST_TRIES = 8

Divergences = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Target:
    """How large an output may be; `option` is how the user said it, one of the others is given.

    size_bytes: of the whole file, or of all its shards; bpw: bits of tensor data per weight;
    ram_bytes: to run it with the usual context, see planning.ram.
    """

    option: str
    size_bytes: int | None = None
    bpw: float | None = None
    ram_bytes: int | None = None

    def file_bytes(self, file: PlannedFile) -> int:
        """The size that the whole file may have."""
        if self.size_bytes is not None:
            return self.size_bytes
        if self.ram_bytes is not None:
            return self.ram_bytes - running(file.metadata).overhead
        weights = sum(tensor.weights for tensor in file.tensors)
        return _head_bytes(file) + math.floor((self.bpw or 0.0) * weights / 8)


def file_for(target: Target, files: Sequence[PlannedFile], name_it: bool) -> PlannedFile:
    """The file of the nearest size, with types guessed to fit the target.

    name_it: whether to add the bits per weight that the target allows to the file's name.

    Raises:
        UsageError: when the smallest types do not fit.
    """
    budget = target.file_bytes(files[0])
    nearest = min(files, key=lambda file: abs(file.size_bytes - budget))
    guess = {
        t.name: {kind.name: t.weights * 0.25 ** _bits(kind) for kind in candidates(t)}
        for t in nearest.tensors
    }
    file = fitted(target, nearest, guess)
    file = replace(file, tensors=[replace(t, divergence=None) for t in file.tensors])
    if not name_it:
        return file
    bpw = min(_bpw(file, budget), _bpw(file, possible_sizes(file)[1]))
    name = f"{file.path.stem}-{math.floor(100 * bpw + 1e-6) / 100:.2f}bpw.gguf"
    return replace(file, path=file.path.with_name(name))


def fitted(target: Target, file: PlannedFile, errors: Divergences) -> PlannedFile:
    """The file with the types that minimise the sum of errors[tensor][type] within the target.

    Raises:
        UsageError: when the smallest types do not fit.
    """
    limit = target.file_bytes(file)
    least, _ = possible_sizes(file)
    if least > limit:
        raise UsageError(
            f"{target.option} leaves {max(0, limit)} bytes for the file, but the smallest types "
            f"make {least}; give more, or take a smaller model"
        )
    budget = limit - _head_bytes(file)
    for _ in range(MOST_TRIES):
        made = _with_types(file, allocate(_points(file, errors), budget), errors)
        if made.size_bytes <= limit:
            return made
        budget -= made.size_bytes - limit  # more shards have more headers
    raise UsageError(f"{target.option}: no room for the headers of so many shards; give more")


def candidates(tensor: PlannedTensor) -> list[TensorType]:
    """The types that a tensor may get: its own where the recipe decides, or it has no blocks."""
    if not tensor.type.quantized or tensor.choice.override is not None:
        return [tensor.type]
    names = dict.fromkeys(fitting(name, tensor.shape[-1]) for name in CANDIDATES)
    return [get(name) for name in names]


def possible_sizes(file: PlannedFile) -> tuple[int, int]:
    """The sizes of the whole file in the smallest and in the largest types."""
    sizes = [[p.nbytes for p in points] for points in _points(file, {}).values()]
    return (
        _head_bytes(file) + sum(map(min, sizes)),
        _head_bytes(file) + sum(map(max, sizes)),
    )


def recipe_of(file: PlannedFile) -> Recipe:
    """The recipe that gives each matrix the type that it has in this file."""
    return Recipe(
        file_type=file.file_type.name,
        tensors=tuple(
            (f"^{re.escape(t.name)}$", t.type.name)
            for t in file.tensors
            if is_quantizable(t.name, t.shape, str(file.metadata["general.architecture"]))
        ),
        description=f"{file.bpw:.2f} bits per weight, chosen by estimated KL divergence",
    )


def _points(file: PlannedFile, errors: Divergences) -> dict[str, list[Point]]:
    return {
        t.name: [
            Point(
                kind.name,
                data_bytes(file.metadata, [replace(t, type=kind).slot]),
                errors.get(t.name, {}).get(kind.name, 0.0),
            )
            for kind in candidates(t)
        ]
        for t in file.tensors
    }


def _with_types(file: PlannedFile, types: Mapping[str, str], errors: Divergences) -> PlannedFile:
    tensors = []
    for tensor in file.tensors:
        name, choice = types[tensor.name], tensor.choice
        if choice.type != name:
            choice = Choice(tensor.name, name, name)
        divergence = errors.get(tensor.name, {}).get(name)
        tensors.append(replace(tensor, type=get(name), choice=choice, divergence=divergence))
    return replace(file, tensors=tensors)


def _head_bytes(file: PlannedFile) -> int:
    """What is not tensor data."""
    return file.size_bytes - data_bytes(file.metadata, file.slots)


def _bpw(file: PlannedFile, size: int) -> float:
    weights = sum(tensor.weights for tensor in file.tensors)
    return 8 * (size - _head_bytes(file)) / weights


def _bits(kind: TensorType) -> float:
    return 8 * kind.type_size / kind.block_size
