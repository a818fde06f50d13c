"""The experts of GPT-OSS, stored together, where outputs of gate and up take turns:

    mlp.experts.gate_up_proj        [experts, hidden, 2 * n_ff]
    mlp.experts.gate_up_proj_bias   [experts, 2 * n_ff]
    mlp.experts.down_proj           [experts, n_ff, hidden]
    mlp.experts.down_proj_bias      [experts, hidden]

or the matrices by outputs in MXFP4 (see mxfp4.py):

    mlp.experts.gate_up_proj_blocks [experts, 2 * n_ff, hidden / 32, 16]
    mlp.experts.gate_up_proj_scales [experts, 2 * n_ff, hidden / 32]

They are seen as the weights of single experts [outputs, inputs], and one bias for all:
mlp.experts.3.gate_proj.weight, mlp.experts.gate_proj_bias.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcli.checkpoint import mxfp4
from quantcli.checkpoint.files import show
from quantcli.checkpoint.safetensors import TENSOR_LIMIT, to_float32
from quantcli.checkpoint.source_tensor import SourceTensor, Weights
from quantcli.errors import BadInputError

CLASSES = ("GptOssForCausalLM",)

_STORED = re.compile(r"(.*\.mlp\.experts)\.(gate_up|down)_proj(_bias|_blocks|_scales|)")
_ROLES = {"gate_up": ("gate_proj", "up_proj"), "down": ("down_proj",)}


def is_interleaved(config: Mapping[str, Any]) -> bool:
    """Whether tensors of those names, if there are any, are laid out as above."""
    classes = config.get("architectures")
    return isinstance(classes, list) and len(classes) > 0 and classes[0] in CLASSES


def is_kept(config: Mapping[str, Any]) -> bool:
    """Whether the weights are quantized in the way that stays as it is: MXFP4."""
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return is_interleaved(config) and method == "mxfp4"


@dataclass(frozen=True)
class _Place:
    """Where a tensor is: every `step`-th output from `first` of an expert, of all if it is None."""

    expert: int | None
    first: int
    step: int

    @property
    def outputs(self) -> slice:
        return slice(self.first, None, self.step)


class InterleavedExperts:
    """The `stored` tensors of `weights`, of experts the single ones: `tensors`."""

    def __init__(self, stored: Mapping[str, SourceTensor], weights: Weights | None) -> None:
        """Without weights, `tensors` alone can be asked for. Raises: BadInputError."""
        self._weights, self._stored = weights, stored
        self._places: dict[str, _Place] = {}
        self.tensors: dict[str, SourceTensor] = {}
        for tensor in stored.values():
            match = _STORED.fullmatch(tensor.name)
            if match is None:
                self._add(tensor)
            elif match[3] == "_scales":
                if f"{tensor.name.removesuffix('_scales')}_blocks" not in stored:
                    raise BadInputError(f"tensor {show(tensor.name)} has no blocks beside it")
            else:
                self._split(tensor, *match.groups())

    def _add(self, tensor: SourceTensor, place: _Place | None = None) -> None:
        if tensor.name in self.tensors:
            raise BadInputError(f"tensor {show(tensor.name)} is there twice")
        if len(self.tensors) >= TENSOR_LIMIT:
            raise BadInputError(f"the checkpoint holds more than {TENSOR_LIMIT} tensors")
        self.tensors[tensor.name] = tensor
        if place is not None:
            self._places[tensor.name] = place

    def _split(self, tensor: SourceTensor, path: str, role: str, ending: str) -> None:
        roles, shape, dtype, nbytes = _ROLES[role], tensor.shape, tensor.dtype, tensor.nbytes
        parts: tuple[str, ...] = (tensor.name,)
        if ending == "_blocks":
            scales = mxfp4.scales_of(tensor, self._stored)
            parts, dtype, nbytes = (*parts, scales.name), mxfp4.NAME, nbytes + scales.nbytes
            shape = (*shape[:2], 32 * shape[2])
        elif not ending and len(shape) == 3:
            shape = shape[0], shape[2], shape[1]
        if len(shape) != (2 if ending == "_bias" else 3) or shape[1] % len(roles) or 0 in shape:
            raise BadInputError(
                f"tensor {show(tensor.name)} of shape {tensor.shape} is no experts'"
            )
        count, n_out = shape[0], shape[1] // len(roles)
        for first, name in enumerate(roles):
            if ending == "_bias":
                seen = SourceTensor(
                    f"{path}.{name}_bias", dtype, (count, n_out), nbytes // len(roles), parts
                )
                self._add(seen, _Place(None, first, len(roles)))
                continue
            for expert in range(count):
                each = nbytes // (count * len(roles))
                full = f"{path}.{expert}.{name}.weight"
                seen = SourceTensor(full, dtype, (n_out, shape[2]), each, parts)
                self._add(seen, _Place(expert, first, len(roles)))

    @property
    def homes(self) -> Mapping[str, str]:
        """The file of each stored tensor."""
        return self._opened.homes

    @property
    def _opened(self) -> Weights:
        if self._weights is None:
            raise RuntimeError("opened for planning, without weights")
        return self._weights

    def raw(self, name: str) -> np.ndarray:
        """Return a read-only view as stored; of MXFP4 a copy, packed as in GGUF."""
        tensor, place = self.tensors[name], self._places.get(name)
        if place is None:
            return self._opened.raw(name)
        if tensor.dtype == mxfp4.NAME:
            return self.packed(name, slice(None))
        stored = self._opened.raw(tensor.parts[0])
        if place.expert is None:
            return stored[:, place.outputs]
        return stored[place.expert].T[place.outputs]

    def packed(self, name: str, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of a weight in MXFP4 as GGUF stores them, uint8 [rows, row_bytes]."""
        place = self._places[name]
        blocks, scales = (
            self._opened.raw(part)[place.expert][place.outputs][rows]
            for part in self.tensors[name].parts
        )
        return mxfp4.repack(blocks, scales)

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        """Return a float32 copy of the given rows only."""
        if self.tensors[name].dtype == mxfp4.NAME:
            return mxfp4.decode(self.packed(name, slice(None) if rows is None else rows))
        if name not in self._places:
            return self._opened.float32(name, rows)
        raw = self.raw(name)
        chosen = np.ascontiguousarray(raw if rows is None else raw[rows])
        return to_float32(chosen, self.tensors[name].dtype)
