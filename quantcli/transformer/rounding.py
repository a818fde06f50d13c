"""What llama.cpp's CPU runtime makes of activations before it multiplies them with weights."""

import numpy as np

from quantcli.kernels.rounding import reciprocal, to_half
from quantcli.tensor_types import stored

SUPER_BLOCK = 256
LARGEST = np.float32(127)


def round_like_llama_cpp(x: np.ndarray, type_name: str) -> np.ndarray:
    """x float32 [rows, n] as a weight of that type meets it (ggml-cpu's vec_dot_type).

    Super-blocks are multiplied with Q8_K (one float32 scale for 256), those of 32 with Q8_0
    or Q8_1 (one fp16 scale for 32), F16 and BF16 with their own type, F32 with x itself.
    """
    kind = stored(type_name)
    if kind.quantized:
        return _round_blocks(x, kind.block_size)
    return x if kind.record.itemsize == x.itemsize else kind.decode(kind.encode(x))


def _round_blocks(x: np.ndarray, size: int) -> np.ndarray:
    """Codes -127..127, half to even, times a scale: quantize_row_q8_K, quantize_row_q8_0."""
    blocks = x.reshape(-1, size)
    extreme = np.maximum(blocks.max(axis=1), -blocks.min(axis=1))[:, None]
    # Not 127 * (1 / extreme), whose second rounding moves some codes.
    inverse = np.divide(LARGEST, extreme, out=np.zeros_like(extreme), where=extreme > 0)
    d = reciprocal(inverse) if size == SUPER_BLOCK else to_half(extreme / LARGEST)
    codes = blocks * inverse
    np.rint(codes, out=codes)
    codes *= d
    return codes.reshape(x.shape)
