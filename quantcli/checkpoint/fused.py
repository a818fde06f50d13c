"""Experts that are stored together, as newer versions of transformers hold them in memory:

    mlp.experts.gate_up_proj [experts, 2 * n_ff, hidden]    of each the gate's rows, then up's
    mlp.experts.down_proj    [experts, hidden, n_ff]

or as all checkpoints of Granite have them, under other names:

    block_sparse_moe.input_linear.weight     as gate_up_proj
    block_sparse_moe.output_linear.weight    as down_proj

They are seen as the tensors of single experts that published checkpoints have. In stored order
these follow each other without gaps.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.safetensors import TENSOR_LIMIT, to_float32
from quantcli.checkpoint.source_tensor import SourceTensor, Weights
from quantcli.errors import BadInputError

# Of other classes such tensors are laid out in other ways.
CLASSES = (
    *("Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM"),
    *("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"),
)

_FUSED = (
    re.compile(r"(.*\.mlp)\.experts\.(gate_up|down)_proj(?:\.weight)?"),
    re.compile(r"(.*\.block_sparse_moe)\.(input|output)_linear\.weight"),
)
_BOTH, _DOWN = ("gate_proj", "up_proj"), ("down_proj",)
_ROLES = {"gate_up": _BOTH, "down": _DOWN, "input": _BOTH, "output": _DOWN}


def is_fused(config: Mapping[str, Any]) -> bool:
    """Whether tensors of that name, if there are any, are laid out as above."""
    classes = config.get("architectures")
    return isinstance(classes, list) and len(classes) > 0 and classes[0] in CLASSES


def parts_of(tensor: SourceTensor) -> list[SourceTensor]:
    """The tensors of single experts, in stored order; the tensor itself where it is none of them.

    Raises: BadInputError (gate and up are of different sizes, too many experts).
    """
    found = (pattern.fullmatch(tensor.name) for pattern in _FUSED)
    match = next(filter(None, found), None)
    if match is None or len(tensor.shape) != 3:
        return [tensor]
    roles = _ROLES[match[2]]
    count, rows, columns = tensor.shape
    if rows % len(roles) or count * len(roles) > TENSOR_LIMIT:
        raise BadInputError(f"tensor {show(tensor.name)} of shape {tensor.shape} is no experts'")
    shape = rows // len(roles), columns
    home = (tensor.name,)
    nbytes = tensor.nbytes // max(1, count * len(roles))
    return [
        SourceTensor(f"{match[1]}.experts.{e}.{r}.weight", tensor.dtype, shape, nbytes, home)
        for e in range(count)
        for r in roles
    ]


def single_experts(stored: Iterable[SourceTensor]) -> dict[str, SourceTensor]:
    """All tensors by name, of experts the single ones.

    Raises: BadInputError (as parts_of, or a tensor is there in both ways).
    """
    found: dict[str, SourceTensor] = {}
    for tensor in stored:
        for part in parts_of(tensor):
            if part.name in found:
                raise BadInputError(f"tensor {show(part.name)} is there alone and among others")
            found[part.name] = part
        if len(found) > TENSOR_LIMIT:
            raise BadInputError(f"the checkpoint holds more than {TENSOR_LIMIT} tensors")
    return found


class SingleExperts:
    """The `stored` tensors of `weights`, of experts the single ones: `tensors`."""

    def __init__(self, stored: Mapping[str, SourceTensor], weights: Weights) -> None:
        """Raises: BadInputError."""
        self._stored, self._weights = stored, weights
        self.tensors = single_experts(stored.values())
        self._places = {
            part.name: number
            for tensor in stored.values()
            for number, part in enumerate(parts_of(tensor))
        }

    @property
    def homes(self) -> Mapping[str, str]:
        """The file of each stored tensor."""
        return self._weights.homes

    def raw(self, name: str) -> np.ndarray:
        """Return a read-only view as stored."""
        tensor = self.tensors[name]
        if not tensor.parts:
            return self._weights.raw(name)
        whole = self._weights.raw(tensor.parts[0])
        single: np.ndarray = whole.reshape(-1, *tensor.shape)[self._places[name]]
        return single

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        """Return a float32 copy of the given rows only."""
        raw = self.raw(name)
        return to_float32(raw if rows is None else raw[rows], self.tensors[name].dtype)
