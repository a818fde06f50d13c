"""Element-wise functions of the forward pass, in runs of rows that stay in the CPU's cache."""

import math

import numpy as np

RUN_VALUES = 1 << 16
CLAMPED = "swiglu_oai"  # GPT-OSS's (ggml_swiglu_oai), with its constants
LIMIT, STEEPNESS = np.float32(7), np.float32(1.702)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    mean = np.vecdot(x, x) / np.float32(x.shape[-1])
    y = x * (1 / np.sqrt(mean + np.float32(eps)))[..., None]
    y *= weight
    return y


def layer_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float
) -> np.ndarray:
    """rms_norm of x - mean(x) over the last axis, plus bias."""
    y = rms_norm(centred(x), weight, eps)
    if bias is not None:
        y += bias
    return y


def centred(x: np.ndarray) -> np.ndarray:
    """x - mean(x) over the last axis."""
    centre: np.ndarray = x - x.mean(axis=-1, keepdims=True)
    return centre


def gate(activation: str, gated: np.ndarray, up: np.ndarray | None) -> np.ndarray:
    """activation(gated) * up, in place of `gated` float32 [rows, n]; without `up` no product.

    Of "swiglu_oai" up is clamped, and 1 added.
    """
    function = {"silu": _silu, "gelu": _gelu, "relu2": _relu2, CLAMPED: _clamped}[activation]
    step = max(1, RUN_VALUES // gated.shape[1])
    for start in range(0, len(gated), step):
        rows = gated[start : start + step]
        function(rows)
        if up is not None:
            rows *= factor(activation, up[start : start + step])
    return gated


def factor(activation: str, up: np.ndarray) -> np.ndarray:
    """What the activation is multiplied by."""
    return np.clip(up, -LIMIT, LIMIT) + 1 if activation == CLAMPED else up


def _silu(x: np.ndarray) -> None:
    """x * sigmoid(x) = h + h * tanh(h) with h = x / 2: tanh has no overflow."""
    x *= np.float32(0.5)
    x += x * np.tanh(x)


def _gelu(x: np.ndarray) -> None:
    """x / 2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))."""
    inner = x * x
    inner *= np.float32(0.044715 * math.sqrt(2 / math.pi))
    inner += np.float32(math.sqrt(2 / math.pi))
    inner *= x
    np.tanh(inner, out=inner)
    x *= np.float32(0.5)
    inner *= x
    x += inner


def _clamped(x: np.ndarray) -> None:
    """x * sigmoid(1.702 x), of x that is 7 at most."""
    np.minimum(x, LIMIT, out=x)
    x *= np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * STEEPNESS * x)


def _relu2(x: np.ndarray) -> None:
    """max(x, 0)^2."""
    np.maximum(x, 0, out=x)
    x *= x
