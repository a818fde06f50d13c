"""Functions of the forward pass with their derivatives (reverse mode).

Each returns y and a `pull`: a function from dL/dy to dL/dx. They compute in the precision of x.
"""

import math
from collections.abc import Callable

import numpy as np

from quantcli.transformer.activations import (
    CLAMPED,
    LIMIT,
    RUN_VALUES,
    STEEPNESS,
    centred,
    factor,
    gate,
    rms_norm,
)
from quantcli.transformer.attention import (
    attention,
    query_tiles,
    soft_cap,
    softmax_numerators,
    tile_rows,
)
from quantcli.transformer.rope import rotate

Pull = Callable[[np.ndarray], np.ndarray]
Three = tuple[np.ndarray, np.ndarray, np.ndarray]


def norm_and_pull(x: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, Pull]:
    """See rms_norm."""

    def pull(dy: np.ndarray) -> np.ndarray:
        size = np.float32(x.shape[-1])
        inverse = (1 / np.sqrt(np.vecdot(x, x) / size + np.float32(eps)))[..., None]
        dx = dy * weight
        along = np.vecdot(dx, x)[..., None] * inverse * inverse / size
        dx -= x * along
        dx *= inverse
        return dx

    return rms_norm(x, weight, eps), pull


def layer_norm_and_pull(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, eps: float
) -> tuple[np.ndarray, Pull]:
    """See layer_norm."""
    y, pull = norm_and_pull(centred(x), weight, eps)
    return y if bias is None else y + bias, lambda dy: centred(pull(dy))


def rotate_and_pull(
    x: np.ndarray, table: np.ndarray, style: str, rest: float = 1.0
) -> tuple[np.ndarray, Pull]:
    """See rotate: turned back by the opposite angles."""
    back = table * np.array([1, -1], table.dtype).reshape(2, 1, 1, 1)
    return rotate(x, table, style, rest), lambda dy: rotate(dy, back, style, rest)


def gate_and_pull(
    activation: str, gated: np.ndarray, up: np.ndarray | None
) -> tuple[np.ndarray, Callable[[np.ndarray], list[np.ndarray]]]:
    """See gate, but not in place; pull returns the gradients of gated and, if there is one, up."""
    slope = {
        "silu": _silu_slope,
        "gelu": _gelu_slope,
        "relu2": _relu2_slope,
        CLAMPED: _clamped_slope,
    }[activation]

    def pull(dy: np.ndarray) -> list[np.ndarray]:
        dgated = dy.copy() if up is None else dy * factor(activation, up)
        step = max(1, RUN_VALUES // gated.shape[1])
        for start in range(0, len(gated), step):
            dgated[start : start + step] *= slope(gated[start : start + step])
        if up is None:
            return [dgated]
        dup = gate(activation, gated.copy(), None)
        dup *= dy if activation != CLAMPED else dy * (np.abs(up) < LIMIT)
        return [dgated, dup]

    return gate(activation, gated.copy(), up), pull


def _silu_slope(x: np.ndarray) -> np.ndarray:
    """s + x s (1 - s) with s = sigmoid(x)."""
    s = x * np.float32(0.5)
    np.tanh(s, out=s)
    s += 1
    s *= np.float32(0.5)
    return s + x * s * (1 - s)


def _gelu_slope(x: np.ndarray) -> np.ndarray:
    """(1 + t) / 2 + x / 2 (1 - t^2) inner', with t = tanh(inner) as in gate's gelu."""
    c, square = np.float32(math.sqrt(2 / math.pi)), x * x
    t = np.tanh(c * x * (1 + np.float32(0.044715) * square))
    inner = c * (1 + np.float32(3 * 0.044715) * square)
    return np.float32(0.5) * (1 + t) * (1 + x * (1 - t) * inner)


def _clamped_slope(x: np.ndarray) -> np.ndarray:
    """s + a x s (1 - s) with s = sigmoid(a x); 0 beyond the limit."""
    s = np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * STEEPNESS * x)
    slope: np.ndarray = (s + STEEPNESS * x * s * (1 - s)) * (x < LIMIT)
    return slope


def _relu2_slope(x: np.ndarray) -> np.ndarray:
    """2 max(x, 0)."""
    slope: np.ndarray = 2 * np.maximum(x, 0)
    return slope


def attention_and_pull(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    window: int,
    cap: float,
    causal: bool = True,
    sinks: np.ndarray | None = None,
) -> tuple[np.ndarray, Callable[[np.ndarray], Three]]:
    """See attention, of one window; pull returns the gradients of q, k, v.

    Probabilities are computed again, tile by tile (FlashAttention, 2205.14135, section B.2).
    """
    out = np.empty((*q.shape[:2], v.shape[2]), q.dtype)
    attention(q, k, v, out, window=window, cap=cap, causal=causal, sinks=sinks)
    (n_ctx, n_head_kv, head_dim), group = k.shape, q.shape[1] // k.shape[1]

    def pull(dy: np.ndarray) -> Three:
        dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
        mean = np.vecdot(dy, out)
        for rows, columns, masks in query_tiles(n_ctx, tile_rows(n_ctx, group), window, causal):
            for head in range(n_head_kv):
                heads = slice(head * group, (head + 1) * group)
                queries, dmixed = (a[rows, heads].reshape(-1, a.shape[2]) for a in (q, dy))
                p = queries @ k[columns, head].T
                dscores = dmixed @ v[columns, head].T
                dscores -= mean[rows, heads].reshape(-1, 1)
                if cap:
                    soft_cap(p, cap)
                    dscores *= 1 - np.square(p / np.float32(cap))
                nothing = softmax_numerators(
                    p, group, masks, None if sinks is None else sinks[heads]
                )
                p /= p.sum(axis=1, keepdims=True) + nothing
                dscores *= p
                dq[rows, heads] = (dscores @ k[columns, head]).reshape(-1, group, head_dim)
                dk[columns, head] += dscores.T @ queries
                dv[columns, head] += p.T @ dmixed
        return dq, dk, dv

    return out, pull
