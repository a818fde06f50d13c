"""Which types the tensors of a file got for a target, in few lines."""

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby

from quantcli.report.model import Output, TensorReport


@dataclass(frozen=True)
class Role:
    """The tensors of one role: "0-1 Q4_K, 2 Q5_K", and the sum of their divergences."""

    name: str
    types: str
    divergence: float


def roles(output: Output) -> list[Role]:
    """The measured tensors by role, those that cost most first."""
    found: dict[str, list[tuple[int | None, TensorReport]]] = defaultdict(list)
    for tensor in output.tensors:
        if tensor.divergence is not None:
            name = tensor.name.removesuffix(".weight")
            place = re.fullmatch(r"blk\.(\d{1,6})\.(.+)", name)
            block, role = (int(place[1]), place[2]) if place else (None, name)
            found[role].append((block, tensor))
    made = [
        Role(role, _runs(tensors), sum(tensor.divergence or 0.0 for _, tensor in tensors))
        for role, tensors in found.items()
    ]
    return sorted(made, key=lambda role: -role.divergence)


def _runs(tensors: list[tuple[int | None, TensorReport]]) -> str:
    parts = []
    for kind, run in groupby(tensors, lambda pair: pair[1].type):
        blocks = [block for block, _ in run]
        first, last = blocks[0], blocks[-1]
        span = "" if first is None else f"{first} " if first == last else f"{first}-{last} "
        parts.append(span + kind)
    return ", ".join(parts)
