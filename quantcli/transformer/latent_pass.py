"""Latent attention and its gradients."""

from collections.abc import Callable

import numpy as np

from quantcli.architectures.wiring import LATENT_NORM, QUERY_NORM
from quantcli.transformer.derivatives import Pull, attention_and_pull, rotate_and_pull
from quantcli.transformer.half import HalfPass
from quantcli.transformer.latent_attention import Windows, latent_of

Pull2 = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def attend_and_pull(block: HalfPass, windows: Windows, x: np.ndarray) -> tuple[np.ndarray, Pull]:
    """See latent_attention.attend, of x [tokens, n_embd]."""
    sizes, n_value = block.sizes, latent_of(block.sizes).n_value
    (q, made), pull_both = block.linears(sizes.wiring.sites["attn"], x)
    q, pull_query = _queries(block, q)
    keys, pull_keys = _keys(block, made, windows)
    heads, pulls = zip(
        *(
            _head(block, head, q[:, head * sizes.head_dim : (head + 1) * sizes.head_dim], keys)
            for head in range(sizes.n_head)
        ),
        strict=True,
    )

    def pull(dy: np.ndarray) -> np.ndarray:
        dq, dkeys = [], np.zeros_like(keys)
        for head, back in enumerate(pulls):
            dquery, dkey = back(dy[:, head * n_value : (head + 1) * n_value])
            dq.append(dquery)
            dkeys += dkey
        return pull_both([pull_query(np.concatenate(dq, axis=1)), pull_keys(dkeys)])

    return np.concatenate(heads, axis=1), pull


def _queries(block: HalfPass, q: np.ndarray) -> tuple[np.ndarray, Pull]:
    """All heads' queries, where they come out of a latent vector of their own."""
    if not latent_of(block.sizes).n_query:
        return q, lambda dq: dq
    normed, pull_norm = block.norm(q, QUERY_NORM)
    (q,), pull_linear = block.linears(("attn_q_b",), normed)
    return q, lambda dq: pull_norm(pull_linear([dq]))


def _keys(block: HalfPass, made: np.ndarray, windows: Windows) -> tuple[np.ndarray, Pull]:
    """See latent_attention.keys_of."""
    n = latent_of(block.sizes).n
    normed, pull_norm = block.norm(np.ascontiguousarray(made[:, :n]), LATENT_NORM)
    turned, pull_turn = rotate_and_pull(
        made[:, n:].reshape(*windows, 1, -1), block.rope["k"], block.wiring.rope
    )

    def pull(dkeys: np.ndarray) -> np.ndarray:
        dlatent = pull_norm(np.ascontiguousarray(dkeys[..., :n]).reshape(-1, n))
        return np.concatenate([dlatent, pull_turn(dkeys[..., n:]).reshape(len(made), -1)], axis=1)

    return np.concatenate([normed.reshape(*windows, 1, n), turned], axis=-1), pull


def _head(
    block: HalfPass, head: int, query: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, Pull2]:
    """What one head makes of its queries [tokens, head_dim]; pull returns dquery and dkeys."""
    latent, windows = latent_of(block.sizes), keys.shape[:2]
    n, still, scale = latent.n, latent.n_still, np.float32(block.sizes.attention_scale)
    (moved,), pull_moved = block.linears(("attn_k_b",), query[:, :still], head)
    turned, pull_turn = rotate_and_pull(
        query[:, still:].reshape(*windows, 1, -1), block.rope["q"], block.wiring.rope
    )
    queries = np.concatenate([(moved * scale).reshape(*windows, 1, n), turned], axis=-1)
    mixed, pulls = zip(
        *(
            attention_and_pull(q, k, k[..., :n], window=0, cap=0.0)
            for q, k in zip(queries, keys, strict=True)
        ),
        strict=True,
    )
    (y,), pull_value = block.linears(("attn_v_b",), np.stack(mixed).reshape(-1, n), head)

    def pull(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dmixed = pull_value([dy]).reshape(*windows, 1, n)
        dqueries, dkeys = np.empty_like(queries), np.empty_like(keys)
        for back, dm, dq, dk in zip(pulls, dmixed, dqueries, dkeys, strict=True):
            dq[...], dk[...], dv = back(dm)
            dk[..., :n] += dv
        dstill = pull_moved([dqueries[..., :n].reshape(-1, n) * scale])
        dturning = pull_turn(dqueries[..., n:]).reshape(len(query), -1)
        return np.concatenate([dstill, dturning], axis=1), dkeys

    return y, pull
