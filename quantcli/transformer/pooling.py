"""From hidden states to embeddings, as llama.cpp pools them, and gradients of their directions."""

import numpy as np

# llama.cpp's numbers (enum llama_pooling_type).
POOLINGS = {0: "none", 1: "mean", 2: "cls", 3: "last"}


def pool(hidden: np.ndarray, kind: str) -> np.ndarray:
    """Embeddings float32 [n, n_embd] of hidden states [n_windows, n_ctx, n_embd].

    kind: "mean" over the tokens of a window, "cls" its first one, "last" its last one, "none" for
    an embedding of each token.
    """
    if kind == "none":
        return hidden.reshape(-1, hidden.shape[-1])
    if kind == "mean":
        mean: np.ndarray = hidden.mean(axis=1)
        return mean
    return hidden[:, 0 if kind == "cls" else -1]


def pull_directions(hidden: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """Gradients at the hidden states of a random component of each embedding's direction.

    A small change de of an embedding e lowers the cosine similarity by |P de|^2 / 2|e|^2, where P
    leaves out what is along e. For normal u that is the mean of (g . de)^2 / 2 with g = P u / |e|:
    these gradients stand for those of a prediction.
    """
    e = pool(hidden, kind)
    length = np.maximum(np.linalg.norm(e, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    along = e / length
    u = np.random.default_rng(seed).standard_normal(e.shape).astype(hidden.dtype)
    g = (u - np.vecdot(u, along)[:, None] * along) / length
    if kind == "none":
        return g.reshape(hidden.shape)
    pulled = np.zeros_like(hidden)
    if kind == "mean":
        pulled += g[:, None] / hidden.dtype.type(hidden.shape[1])
    else:
        pulled[:, 0 if kind == "cls" else -1] = g
    return pulled
