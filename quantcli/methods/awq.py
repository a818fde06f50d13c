"""AWQ (arXiv 2306.00978) as an exact fold: wide inputs are narrowed before anything is quantized.

The columns of the linears that share an input are multiplied by s and what stands before them is
divided by s, so that the file needs nothing that llama.cpp does not know. Columns that see large
inputs grow in their block and lose less of the rounding; the inputs get even, and lose less where
llama.cpp rounds activations, which is most of what is lost at 6 bits.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantcli.architectures.wiring import MLP, PER_HEAD, QUERY_NORM
from quantcli.tensor_types import TensorType
from quantcli.transformer.hyperparameters import Hyperparameters
from quantcli.transformer.layout import HEAD, fused_gate
from quantcli.transformer.rounding import round_like_llama_cpp
from quantcli.transformer.sites import Site, matrix, sites_of

Kinds = Mapping[str, TensorType]

EXPONENTS = (0.0, 0.25, 0.4, 0.5, 0.75)
ROWS = 256  # of each linear, evenly spread: they stand for all of it when scales are compared
LARGEST = 16.0  # scale, and the smallest is its reciprocal: fp16 block scales keep their digits

# What is left of the loss by round to nearest under a method that compensates errors.
COMPENSATED = 0.25


@dataclass(frozen=True, eq=False)
class Fold:
    """One input that can be scaled.

    site: the input; producer: the norm or linear before it, without ".weight"; sources: int64 [n],
    which of the producer's values or rows becomes each column.
    """

    site: Site
    producer: str
    sources: np.ndarray


@dataclass(frozen=True, eq=False)
class Scales:
    """What `search` found: s float32 [n] of the columns, and the summed loss of each exponent."""

    s: np.ndarray
    exponent: float
    losses: Mapping[float, float]


def block_folds(sizes: Hyperparameters, number: int) -> list[Fold]:
    """The folds of one block, in the order of its sites."""
    folds = _possible(sizes, number)
    found = []
    for short, site in sites_of(sizes, number).items():
        short, _, head = short.partition(".")
        if short in folds:
            sources = _sources(sizes, folds[short])
            if short in PER_HEAD:
                sources = _of_head(sizes, int(head))
            found.append(Fold(site, f"blk.{number}.{folds[short]}", sources))
    return found


def head_fold(sizes: Hyperparameters, *, tied: bool) -> Fold | None:
    """The fold of the output head; None where the embedding is read in its place."""
    producer = sizes.wiring.folds.get("output")
    if tied or producer is None:
        return None
    return Fold(Site("output", (HEAD,)), producer, _sources(sizes, producer))


def left_out(sizes: Hyperparameters, *, tied: bool) -> list[tuple[str, str]]:
    """(site, reason) of every input that no fold scales; sites of blocks by their short names."""
    reasons = {
        short: "nothing before it can be divided by a scale without a change to the function"
        for short in (*sizes.wiring.sites, *(() if sizes.wiring.embeds else ("output",)))
        if short not in sizes.wiring.folds
    }
    if sizes.experts is not None:
        reasons |= dict.fromkeys(MLP, "its experts see tokens of their own, which differ")
    if tied and not sizes.wiring.embeds:
        reasons["output"] = "its matrix is the embedding, whose rows are the model's input, too"
    return list(reasons.items())


def _possible(sizes: Hyperparameters, number: int) -> dict[str, str]:
    left = MLP if sizes.experts_of(number) is not None else ()
    return {short: producer for short, producer in sizes.wiring.folds.items() if short not in left}


def apply_fold(weights: dict[str, np.ndarray], fold: Fold, s: np.ndarray) -> None:
    """Replace the arrays of the linears and of what stands before them; s float32 [n]."""
    for name in fold.site.weights:
        if fold.site.expert is None:
            weights[name] = weights[name] * s
        else:
            weights[name] = weights[name].copy()
            weights[name][fold.site.expert] *= s
    _divide_producer(weights, fold, s)


def _divide_producer(weights: dict[str, np.ndarray], fold: Fold, s: np.ndarray) -> None:
    """Divide what stands before the linears, so that the function stays the same."""
    producer = weights[f"{fold.producer}.weight"]
    # Rows of a stack are numbered one matrix after the other.
    n_rows = len(producer) if producer.ndim == 1 else math.prod(producer.shape[:-1])
    shared = np.ones(n_rows, np.float32)
    shared[fold.sources] = s
    if not np.array_equal(shared[fold.sources], s):
        raise RuntimeError(f"{fold.site.name}: columns from one row of {fold.producer} differ in s")
    for name in (f"{fold.producer}.weight", f"{fold.producer}.bias"):
        if name in weights:
            by_row = weights[name].reshape(len(shared), -1) / shared[:, None]
            weights[name] = by_row.reshape(weights[name].shape)


def search(
    fold: Fold,
    weights: Mapping[str, np.ndarray],
    outputs: Sequence[Kinds],
    h: np.ndarray,
    sample: np.ndarray,
    *,
    share: float = 1.0,
) -> Scales:
    """The s = r^a / (geometric mean of r^a) of least loss, r_j = sqrt(H_jj), a in EXPONENTS.

    weights: float32 [rows, n] by name, of which ROWS are looked at; outputs: their tensor types in
    each file to come; h: X^T X / N float32 [n, n]; sample: some of the inputs x, float32
    [tokens, n]. The loss, in squares of the outputs per token, is share * tr(dW H dW^T) by round to
    nearest in the real type, and what rounding x / s as llama.cpp does adds; share: COMPENSATED
    before GPTQ, else 1.
    Inputs that are always zero keep s = 1.
    """
    rows = {name: _spread(matrix(weights, name, fold.site)) for name in fold.site.weights}
    found = {a: _scales(fold, np.diagonal(h), a) for a in EXPONENTS}
    losses = {
        a: sum(
            share * _weight_loss(w, kinds[name], h, s) + _input_loss(w, kinds[name], sample, s)
            for name, w in rows.items()
            for kinds in outputs
        )
        for a, s in found.items()
    }
    best = min(losses, key=losses.__getitem__)
    return Scales(found[best], best, losses)


def _sources(sizes: Hyperparameters, producer: str) -> np.ndarray:
    """Where a producer's rows become an input's columns; v and up are the last of fused rows."""
    if producer in ("attn_v", "attn_qkv"):
        rows = np.arange(sizes.n_head_kv * sizes.head_dim).reshape(sizes.n_head_kv, -1)
        if producer == "attn_qkv":
            rows += (sizes.n_head + sizes.n_head_kv) * sizes.head_dim
        return np.repeat(rows, sizes.n_head // sizes.n_head_kv, axis=0).reshape(-1)
    if producer == "ffn_up":
        return np.arange(sizes.n_ff) + (sizes.n_ff if fused_gate(sizes) else 0)
    if sizes.latent and producer == "attn_v_b":
        return np.arange(sizes.n_head * sizes.latent.n_value)
    if sizes.latent and producer == QUERY_NORM:
        return np.arange(sizes.latent.n_query)
    return np.arange(sizes.n_embd)


def _of_head(sizes: Hyperparameters, head: int) -> np.ndarray:
    """The rows of a head's query that do not turn: they are what attn_k_b reads."""
    return np.arange(sizes.latent.n_still if sizes.latent else 0) + head * sizes.head_dim


def _spread(w: np.ndarray) -> np.ndarray:
    """At most ROWS rows, evenly spread, scaled so that they stand for all."""
    step = -(-len(w) // ROWS)
    return w[::step] * np.float32(np.sqrt(step))


def _scales(fold: Fold, squares: np.ndarray, exponent: float) -> np.ndarray:
    """r^a over its geometric mean; columns that come from one row share one scale."""
    shared = np.bincount(fold.sources, squares)
    live = shared > 0
    logs = np.zeros(len(shared))
    logs[live] = exponent / 2 * np.log(shared[live])
    logs[live] -= logs[live].mean() if live.any() else 0
    limit = np.log(LARGEST)
    return np.exp(np.clip(logs, -limit, limit))[fold.sources].astype(np.float32)


def _weight_loss(w: np.ndarray, kind: TensorType, h: np.ndarray, s: np.ndarray) -> float:
    """tr(dW H dW^T) of round to nearest after the fold, by the importance it will have."""
    packed = kind.encode(w * s, np.diagonal(h) / np.square(s))
    error = kind.decode(packed) / s - w
    return float(np.vecdot(error @ h, error).sum(dtype=np.float64))


def _input_loss(w: np.ndarray, kind: TensorType, sample: np.ndarray, s: np.ndarray) -> float:
    """Mean square of what llama.cpp's rounding of the folded inputs changes in the outputs."""
    error = round_like_llama_cpp(sample / s, kind.name) * s - sample
    return float(np.square(error @ w.T).sum(dtype=np.float64)) / len(sample)
