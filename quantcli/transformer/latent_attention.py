"""Multi-head latent attention (MLA, arXiv 2405.04434) as llama.cpp computes it.

Keys and values of all heads are made of one latent vector per token. The matrices that would make
them are applied to the other side instead: a head's query goes into the latent's space (attn_k_b),
where it meets the latent vectors themselves, and what is mixed there comes back (attn_v_b).
"""

import numpy as np

from quantcli.architectures.wiring import LATENT_NORM, QUERY_NORM
from quantcli.transformer.attention import attention
from quantcli.transformer.half import Half
from quantcli.transformer.hyperparameters import Hyperparameters
from quantcli.transformer.latent_sizes import Latent
from quantcli.transformer.rope import rotate
from quantcli.transformer.sites import Tap

Windows = tuple[int, ...]


def attend(block: Half, y: np.ndarray, windows: Windows, tap: Tap) -> np.ndarray:
    """The input of attn_output, float32 [tokens, n_head * n_value], from y, that of "attn".

    windows: (how many, n_ctx). `tap` gets what each head's matrices see. Raises BadInputError
    naming the site whose input is not finite.
    """
    sizes, latent = block.sizes, latent_of(block.sizes)
    q, made = block.meet("attn", y, tap)
    if latent.n_query:
        (q,) = block.meet("attn_q_b", block.norm(q, QUERY_NORM), tap)
    keys = keys_of(block, made, windows)
    out = np.empty((len(y), sizes.n_head * latent.n_value), np.float32)
    for head in range(sizes.n_head):
        query = q[:, head * sizes.head_dim : (head + 1) * sizes.head_dim]
        (moved,) = block.meet(f"attn_k_b.{head}", query[:, : latent.n_still], tap)
        mixed = mix_latents(block, query, moved, keys)
        place = slice(head * latent.n_value, (head + 1) * latent.n_value)
        (out[:, place],) = block.meet(f"attn_v_b.{head}", mixed, tap)
    return out


def latent_of(sizes: Hyperparameters) -> Latent:
    """The sizes of a model that is known to have latent attention."""
    if sizes.latent is None:
        raise RuntimeError("a model without latent attention")
    return sizes.latent


def keys_of(block: Half, made: np.ndarray, windows: Windows) -> np.ndarray:
    """[*windows, 1, n + n_rot]: the normed latent vector, which is the value, too, and what turns.

    made: the outputs [tokens, n + n_rot] of attn_kv_a_mqa.
    """
    n = latent_of(block.sizes).n
    normed = block.norm(np.ascontiguousarray(made[:, :n]), LATENT_NORM)
    turned = rotate(made[:, n:].reshape(*windows, 1, -1), block.rope_k, block.wiring.rope)
    return np.concatenate([normed.reshape(*windows, 1, n), turned], axis=-1)


def mix_latents(block: Half, query: np.ndarray, moved: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """[tokens, n]: latent vectors, mixed as one head attends to them.

    query: [tokens, head_dim], of which the last n_rot are used; moved: [tokens, n], what attn_k_b
    made of the others.
    """
    latent, windows = latent_of(block.sizes), keys.shape[:2]
    still = (moved * np.float32(block.sizes.attention_scale)).reshape(*windows, 1, latent.n)
    turning = query[:, latent.n_still :].reshape(*windows, 1, -1)
    turned = rotate(turning, block.rope_q, block.wiring.rope)
    queries = np.concatenate([still, turned], axis=-1)
    out = np.empty((*windows, 1, latent.n), np.float32)
    for q, k, mixed in zip(queries, keys, out, strict=True):
        attention(q, k, k[..., : latent.n], mixed, window=0, cap=0.0)
    return out.reshape(-1, latent.n)
