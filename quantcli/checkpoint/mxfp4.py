"""MXFP4 as GPT-OSS stores it, made what GGUF stores: other places of the same numbers.

A checkpoint has for each 32 inputs 16 bytes, of weights 2j and 2j + 1, and a power of two apart;
GGUF has the power, then bytes of weights j and j + 16 (block_mxfp4 of ggml).
"""

from collections.abc import Mapping

import numpy as np

from quantcli.checkpoint.files import show
from quantcli.checkpoint.prequantized.floats import E2M1, E8M0
from quantcli.checkpoint.source_tensor import SourceTensor
from quantcli.errors import BadInputError

NAME = "MXFP4"
ROW_BYTES = 17  # of 32 weights


def scales_of(blocks: SourceTensor, stored: Mapping[str, SourceTensor]) -> SourceTensor:
    """The powers of two of `blocks` [experts, outputs, groups, 16]. Raises BadInputError."""
    name = f"{blocks.name.removesuffix('_blocks')}_scales"
    scales = stored.get(name)
    if scales is None:
        raise BadInputError(f"tensor {show(blocks.name)} has no {show(name)} beside it")
    fit = len(blocks.shape) == 4 and blocks.shape[3] == 16 and scales.shape == blocks.shape[:3]
    if not fit or {blocks.dtype, scales.dtype} != {"U8"}:
        raise BadInputError(
            f"tensors {show(blocks.name)} ({blocks.dtype} {blocks.shape}) and {show(name)}"
            f" ({scales.dtype} {scales.shape}) are no MXFP4"
        )
    return scales


def repack(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Uint8 [rows, 17 * groups] of blocks [rows, groups, 16] and scales [rows, groups]."""
    codes = np.stack((blocks & np.uint8(15), blocks >> np.uint8(4)), axis=-1)
    halves = codes.reshape(*scales.shape, 2, 16)
    packed = np.empty((*scales.shape, ROW_BYTES), np.uint8)
    packed[..., 0] = scales
    packed[..., 1:] = halves[..., 0, :] | halves[..., 1, :] << np.uint8(4)
    return packed.reshape(len(scales), -1)


def decode(packed: np.ndarray) -> np.ndarray:
    """Float32 [rows, 32 * groups] of what repack returns; exact."""
    groups = packed.reshape(len(packed), -1, ROW_BYTES)
    halves = groups[..., 1:] & np.uint8(15), groups[..., 1:] >> np.uint8(4)
    w: np.ndarray = E2M1[np.concatenate(halves, axis=-1)]
    w *= E8M0[groups[..., :1]]
    return w.reshape(len(packed), -1)
