"""A mixture of experts in place of a block's mlp: each token goes to a few of many small mlps."""

from dataclasses import dataclass

import numpy as np

from quantcli.transformer.activations import gate
from quantcli.transformer.half import Half
from quantcli.transformer.sites import Tap

SMALLEST_SUM = np.float32(2**-14)  # llama.cpp's: the smallest normal fp16


@dataclass(frozen=True)
class Routing:
    """Where tokens go: experts int64 [tokens, used], and their weights float32 [tokens, used]."""

    experts: np.ndarray
    weights: np.ndarray

    def of(self, expert: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that go to one expert, ascending, and its weight for each, float32 [n, 1]."""
        tokens, slots = np.nonzero(self.experts == expert)
        return tokens, self.weights[tokens, slots, None]


def route(logits: np.ndarray, used: int, normalized: bool, scale: float = 1.0) -> Routing:
    """Softmax over the router's logits float32 [tokens, n_expert], and the `used` largest.

    scale: of the weights in the end.
    """
    p = softmax(logits)
    experts = np.argsort(-p, axis=1, kind="stable")[:, :used]
    weights = np.take_along_axis(p, experts, axis=1)
    if normalized:
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), SMALLEST_SUM)
    if scale != 1:
        weights *= np.float32(scale)
    return Routing(experts, weights)


def mix(block: Half, y: np.ndarray, tap: Tap) -> np.ndarray:
    """What the experts make of y float32 [tokens, n_embd], the input of the block's second half.

    `tap` gets what each expert sees: its own tokens only; experts that no token goes to are left
    out. Raises BadInputError naming the site whose input is not finite.
    """
    wiring, counts = block.wiring.mixture, block.experts
    if wiring is None or counts is None:
        raise RuntimeError("a block without experts")
    logits, *shared = block.meet("ffn", y, tap)
    routing = route(logits, counts.used, wiring.normalized, counts.scale)
    out = np.zeros_like(y)
    for expert in range(counts.count):
        tokens, weights = routing.of(expert)
        if len(tokens):
            gated, up = block.meet(f"ffn_exps.{expert}", y[tokens], tap)
            inner = gate(block.wiring.activation, gated, up)
            (made,) = block.meet(f"ffn_down_exps.{expert}", inner, tap)
            made *= weights
            out[tokens] += made
    if shared:
        *share, gated, up = shared
        inner = gate(block.wiring.activation, gated, up)
        (made,) = block.meet("ffn_down_shexp", inner, tap)
        if share:
            made *= sigmoid(share[0])
        out += made
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x)
