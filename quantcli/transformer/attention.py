"""Causal grouped-query attention of one window, in tiles of query tokens."""

import numpy as np

TILE_SCORES = 1 << 17  # of one head group: 512 KB, so that a tile stays in the CPU's own cache
MIN_TILE, MAX_TILE = 16, 128


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, out: np.ndarray, *, window: int, cap: float
) -> None:
    """out [n_ctx, n_head, d] = softmax(q k^T) v, where token i sees tokens j <= i.

    q [n_ctx, n_head, d] is scaled already; k, v [n_ctx, n_head_kv, d]; all float32. With a
    `window` it sees i - window < j <= i only; `cap` > 0 is the soft cap of the scores.
    """
    n_ctx, n_head_kv, head_dim = k.shape
    group = q.shape[1] // n_head_kv
    step = min(MAX_TILE, max(MIN_TILE, TILE_SCORES // (group * n_ctx)))
    scores = np.empty(min(step, n_ctx) * group * n_ctx, np.float32)
    for start in range(0, n_ctx, step):
        stop = min(start + step, n_ctx)
        first = max(0, start - window + 1) if window else 0
        hidden = _hidden(start, stop, first, window)
        shape = ((stop - start) * group, stop - first)
        tile = scores[: shape[0] * shape[1]].reshape(shape)
        for head in range(n_head_kv):
            heads = slice(head * group, (head + 1) * group)
            queries = q[start:stop, heads].reshape(-1, head_dim)
            np.matmul(queries, k[first:stop, head].T, out=tile)
            if cap:
                _soft_cap(tile, cap)
            for columns, mask in hidden:
                tile.reshape(stop - start, group, -1)[:, :, columns] += mask[:, None]
            mixed = _softmax_numerators(tile) @ v[first:stop, head]
            mixed /= tile @ np.ones((shape[1], 1), np.float32)
            out[start:stop, heads] = mixed.reshape(stop - start, group, head_dim)


def _soft_cap(x: np.ndarray, cap: float) -> None:
    x /= np.float32(cap)
    np.tanh(x, out=x)
    x *= np.float32(cap)


def _softmax_numerators(scores: np.ndarray) -> np.ndarray:
    scores -= scores.max(axis=1, keepdims=True)
    return np.exp(scores, out=scores)


def _hidden(start: int, stop: int, first: int, window: int) -> list[tuple[slice, np.ndarray]]:
    """Column ranges of the tile and what to add there: -inf where a token may not look.

    Only the last columns hold tokens to come, only the first ones tokens that left the window.
    """
    token = np.arange(start, stop)[:, None]
    minus = np.float32(-np.inf)
    masks = [(slice(start - first, None), np.where(np.arange(start, stop) > token, minus, 0))]
    if window and stop - window > first:
        old = np.arange(first, stop - window)
        masks.append((slice(0, len(old)), np.where(old <= token - window, minus, 0)))
    return [(columns, mask.astype(np.float32)) for columns, mask in masks]
