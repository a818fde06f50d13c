"""Mixtures of experts for methods that calibrate: each expert is quantized on its own tokens.

A token counts where both the float model and the quantized one send it to the expert. Each model
goes on with the experts that it chooses itself, as it will when it runs.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quantcli.architectures import wiring
from quantcli.methods.encoded import Cost, Encoded
from quantcli.methods.streams import Stream
from quantcli.transformer.activations import gate
from quantcli.transformer.block import TILE_TOKENS, Block
from quantcli.transformer.mixture import Routing, route, sigmoid
from quantcli.transformer.scratch import hidden_states

Matrices = dict[str, np.ndarray]
Sent = tuple[np.ndarray, np.ndarray]  # tokens int64 [n], and the expert's weight for each [n, 1]

# (number of the output, linears, what they see in the float model and in the output's) -> encoded
# linears, and what the output's reader decodes.
Quantize = Callable[[int, Matrices, np.ndarray, np.ndarray], tuple[Mapping[str, Encoded], Matrices]]


@dataclass
class Passing:
    """One model before a mixture: y [tokens, n_embd] is its input, `made` what came out so far."""

    stream: Stream
    y: np.ndarray
    made: np.ndarray
    routing: Routing
    share: np.ndarray | None  # of the shared expert, None for all

    @classmethod
    def of(cls, stream: Stream, block: Block, pool: ThreadPoolExecutor) -> "Passing":
        """The router and the gate of a shared expert are never quantized: block's serve all.

        Without such a gate all of what a shared expert makes counts.
        """
        counts, mixture = block.experts, block.wiring.mixture
        if counts is None or mixture is None:
            raise RuntimeError("a block without experts")
        router, share = (
            block.weights.get(block.full(n)) for n in (wiring.ROUTER, wiring.SHARED_GATE)
        )
        if router is None:
            raise RuntimeError("a mixture without router")
        made = hidden_states(stream.y.shape)
        made[...] = 0
        logits = times(stream.y, router, pool, block.bias(block.full(wiring.ROUTER)))
        return cls(
            stream,
            stream.y,
            made,
            route(logits, counts.used, mixture.normalized, counts.scale),
            None if share is None else sigmoid(times(stream.y, share, pool)),
        )

    def sent(self, expert: int | None) -> Sent:
        """What goes to an expert, None for the shared one."""
        if expert is not None:
            return self.routing.of(expert)
        share = np.ones((1, 1), np.float32) if self.share is None else self.share
        return np.arange(len(self.y)), share


def quantize_mixture(
    block: Block, passing: Sequence[Passing], quantize: Quantize, pool: ThreadPoolExecutor
) -> dict[str, list[Encoded]]:
    """All experts' linears by name, one Encoded per output; the streams are at the block's end.

    passing: the float model, whose weights the block has, and each output's.
    """
    counts = block.experts
    if counts is None:
        raise RuntimeError("a block without experts")
    found: dict[str, list[list[Encoded]]] = {}
    for expert in range(counts.count):
        both, down = wiring.EXPERT.values()
        for name, encoded in _expert(block, passing, quantize, both, down, expert, pool).items():
            found.setdefault(name, []).append(encoded)
    if counts.n_ff_shared:
        both, down = wiring.SHARED, (wiring.SHARED_DOWN,)
        for name, encoded in _expert(block, passing, quantize, both, down, None, pool).items():
            found[name] = [encoded]
    for each in passing:
        block.leave("ffn_down", each.stream.x, [each.made])
        each.stream.y = np.empty((len(each.y), 0), np.float32)
    return {name: [stacked(of) for of in zip(*each, strict=True)] for name, each in found.items()}


def _expert(
    block: Block,
    passing: Sequence[Passing],
    quantize: Quantize,
    both: Sequence[str],
    down: Sequence[str],
    expert: int | None,
    pool: ThreadPoolExecutor,
) -> dict[str, list[Encoded]]:
    """Quantize one expert, and add what it makes."""
    sent = [each.sent(expert) for each in passing]
    x = [each.y[tokens] for each, (tokens, _) in zip(passing, sent, strict=True)]
    encoded: dict[str, list[Encoded]] = {}

    def through(shorts: Sequence[str]) -> list[list[np.ndarray]]:
        """The outputs of some linears in each model."""
        names = [block.full(short) for short in shorts]
        stacks = {name: block.weights[name] for name in names}
        linears = {n: w if expert is None else w[expert] for n, w in stacks.items()}
        models = [linears]
        for number, (other, (tokens, _)) in enumerate(zip(x[1:], sent[1:], strict=True)):
            _, here, there = np.intersect1d(
                sent[0][0], tokens, assume_unique=True, return_indices=True
            )
            made, decoded = quantize(number, linears, x[0][here], other[there])
            models.append(decoded)
            for name in names:
                encoded.setdefault(name, []).append(made[name])
        return [
            [times(one, w[name], pool, block.bias(name, expert)) for name in names]
            for one, w in zip(x, models, strict=True)
        ]

    x = [gate(block.wiring.activation, gated, up) for gated, up in through(both)]
    for each, (tokens, weights), (made,) in zip(passing, sent, through(down), strict=True):
        made *= weights
        each.made[tokens] += made
    return encoded


def times(
    x: np.ndarray, w: np.ndarray, pool: ThreadPoolExecutor, bias: np.ndarray | None = None
) -> np.ndarray:
    """x W^T + bias float32 [tokens, rows], in tiles of fixed size."""
    found = hidden_states((len(x), len(w)))

    def fill(start: int) -> None:
        tile = slice(start, start + TILE_TOKENS)
        np.matmul(x[tile], w.T, out=found[tile])
        if bias is not None:
            found[tile] += bias

    list(pool.map(fill, range(0, len(x), TILE_TOKENS)))
    return found


def stacked(matrices: Sequence[Encoded]) -> Encoded:
    """One matrix below the other."""
    packed = np.concatenate([each.packed for each in matrices])
    return Encoded(packed, sum((each.cost for each in matrices), Cost()))
