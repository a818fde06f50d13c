"""A mixture of experts and its gradients: through the experts chosen, and through their weights.

The choice itself is taken as it is: it has no gradient.
"""

import numpy as np

from quantcli.architectures import wiring
from quantcli.transformer.derivatives import Pull
from quantcli.transformer.half import HalfPass
from quantcli.transformer.mixture import SMALLEST_SUM, route, sigmoid, softmax


def mix_and_pull(block: HalfPass, x: np.ndarray) -> tuple[np.ndarray, Pull]:
    """See mixture.mix, of x [tokens, n_embd]."""
    mixture, counts = block.wiring.mixture, block.experts
    if mixture is None or counts is None:
        raise RuntimeError("a block without experts")
    (logits,), pull_router = block.linears((wiring.ROUTER,), x)
    routing = route(logits, counts.used, mixture.normalized, counts.scale)
    out, each = np.zeros_like(x), []
    both, down = wiring.EXPERT.values()
    for expert in range(counts.count):
        tokens, weights = routing.of(expert)
        if len(tokens):
            made, back = block.gated(both, down, x[tokens], expert)
            out[tokens] += made * weights
            each.append((expert, tokens, weights, made, back))

    def pull(dy: np.ndarray) -> np.ndarray:
        dx, dweights = np.zeros_like(x), np.zeros_like(logits)
        chosen = np.zeros(logits.shape, bool)
        for expert, tokens, weights, made, back in each:
            dx[tokens] += back(dy[tokens] * weights)
            dweights[tokens, expert] = np.vecdot(dy[tokens], made) * np.float32(counts.scale)
            chosen[tokens, expert] = True
        dlogits = _pull_weights(logits, dweights, chosen, mixture.normalized)
        dx += pull_router([dlogits])
        return dx

    if not counts.n_ff_shared:
        return out, pull
    shared, pull_shared = _shared(block, x, mixture.shared_gate)
    return out + shared, lambda dy: pull(dy) + pull_shared(dy)


def _shared(block: HalfPass, x: np.ndarray, gated: bool) -> tuple[np.ndarray, Pull]:
    made, back = block.gated(wiring.SHARED, (wiring.SHARED_DOWN,), x)
    if not gated:
        return made, back
    (share,), pull_share = block.linears((wiring.SHARED_GATE,), x)
    s = sigmoid(share)

    def pull(dy: np.ndarray) -> np.ndarray:
        dshare = np.vecdot(dy, made)[:, None] * s * (1 - s)
        return back(dy * s) + pull_share([dshare])

    return made * s, pull


def _pull_weights(
    logits: np.ndarray, dweights: np.ndarray, chosen: np.ndarray, normalized: bool
) -> np.ndarray:
    """Gradients of the router's logits from those of the weights, 0 where not chosen."""
    p = softmax(logits)
    dp = dweights
    if normalized:
        total = np.maximum((p * chosen).sum(axis=1, keepdims=True), SMALLEST_SUM)
        mean = (dweights * p).sum(axis=1, keepdims=True) / total
        dp = (dweights - mean) * chosen / total
    return p * (dp - (dp * p).sum(axis=1, keepdims=True))
