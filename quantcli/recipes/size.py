"""Sizes that follow from the choices alone."""

from collections.abc import Mapping, Sequence
from math import prod

from quantcli.recipes.choose import Choice
from quantcli.tensor_types import get

Shapes = Mapping[str, tuple[int, ...]]


def total_bytes(choices: Sequence[Choice], shapes: Shapes) -> int:
    """Bytes of tensor data, without header and padding; shapes are in numpy order, by name."""
    return sum(
        prod(shapes[choice.name][:-1]) * get(choice.type).row_bytes(shapes[choice.name][-1])
        for choice in choices
    )


def bpw(choices: Sequence[Choice], shapes: Shapes) -> float:
    """Bits of tensor data per weight of the whole file."""
    weights = sum(prod(shapes[choice.name]) for choice in choices)
    return 8 * total_bytes(choices, shapes) / weights
