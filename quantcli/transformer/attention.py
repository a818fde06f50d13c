"""Grouped-query attention of one window, in tiles of query tokens."""

from collections.abc import Iterator

import numpy as np

TILE_SCORES = 1 << 17  # of one head group: 512 KB, so that a tile stays in the CPU's own cache
MIN_TILE, MAX_TILE = 16, 128

Masks = list[tuple[slice, np.ndarray]]  # columns, and what to add there


def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    out: np.ndarray,
    *,
    window: int,
    cap: float,
    causal: bool = True,
    sinks: np.ndarray | None = None,
) -> None:
    """out [n_ctx, n_head, d_v] = softmax(q k^T) v, where token i sees tokens j <= i.

    q [n_ctx, n_head, d] is scaled already; k [n_ctx, n_head_kv, d], v [n_ctx, n_head_kv, d_v]; all
    float32. With a `window` it sees i - window < j <= i only; unless `causal` it sees all; `cap` >
    0 is the soft cap of the scores. sinks: [n_head], a score of each head for looking at nothing.
    """
    n_ctx, n_head_kv, head_dim = k.shape
    group = q.shape[1] // n_head_kv
    step = tile_rows(n_ctx, group)
    scores = np.empty(min(step, n_ctx) * group * n_ctx, q.dtype)
    for rows, columns, masks in query_tiles(n_ctx, step, window, causal):
        shape = ((rows.stop - rows.start) * group, columns.stop - columns.start)
        tile = scores[: shape[0] * shape[1]].reshape(shape)
        for head in range(n_head_kv):
            heads = slice(head * group, (head + 1) * group)
            queries = q[rows, heads].reshape(-1, head_dim)
            np.matmul(queries, k[columns, head].T, out=tile)
            if cap:
                soft_cap(tile, cap)
            nothing = softmax_numerators(
                tile, group, masks, None if sinks is None else sinks[heads]
            )
            mixed = tile @ v[columns, head]
            mixed /= tile @ np.ones((shape[1], 1), q.dtype) + nothing
            out[rows, heads] = mixed.reshape(-1, group, v.shape[2])


def tile_rows(n_ctx: int, group: int) -> int:
    """How many query tokens make a tile, `group` heads at a time."""
    return min(MAX_TILE, max(MIN_TILE, TILE_SCORES // (group * n_ctx)))


def query_tiles(
    n_ctx: int, step: int, window: int, causal: bool = True
) -> Iterator[tuple[slice, slice, Masks]]:
    """Tokens `step` at a time, the tokens that some of them see, and what hides the others."""
    for start in range(0, n_ctx, step):
        stop = min(start + step, n_ctx)
        if not causal:
            yield slice(start, stop), slice(0, n_ctx), []
            continue
        first = max(0, start - window + 1) if window else 0
        yield slice(start, stop), slice(first, stop), _masks(start, stop, first, window)


def soft_cap(x: np.ndarray, cap: float) -> None:
    """cap * tanh(x / cap), in place."""
    x /= np.float32(cap)
    np.tanh(x, out=x)
    x *= np.float32(cap)


def softmax_numerators(
    scores: np.ndarray, group: int, masks: Masks, sinks: np.ndarray | None
) -> np.ndarray | int:
    """exp(score - largest of its row), 0 where hidden, in place; scores [tokens * group, n].

    Returned is the numerator of the sinks [group], for each row; 0 without.
    """
    for columns, mask in masks:
        scores.reshape(-1, group, scores.shape[1])[:, :, columns] += mask[:, None]
    largest = scores.max(axis=1, keepdims=True)
    if sinks is None:
        scores -= largest
        np.exp(scores, out=scores)
        return 0
    each = np.tile(sinks, len(scores) // group)[:, None]
    np.maximum(largest, each, out=largest)
    scores -= largest
    np.exp(scores, out=scores)
    return np.exp(each - largest)


def _masks(start: int, stop: int, first: int, window: int) -> Masks:
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
