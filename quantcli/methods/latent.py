"""Latent attention for methods that calibrate: each head's matrices on what that head sees.

Several models go side by side. None has all heads' queries at once: they are made anew from their
input, head by head, as the hidden states of all windows are long.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quantcli.architectures.wiring import QUERY_NORM
from quantcli.methods.encoded import Encoded
from quantcli.methods.experts import Matrices, Quantize, stacked, times
from quantcli.methods.streams import Stream
from quantcli.transformer.block import Block, check_finite
from quantcli.transformer.latent_attention import keys_of, latent_of, mix_latents
from quantcli.transformer.scratch import hidden_states
from quantcli.transformer.sites import Site, matrix
from quantcli.transformer.transformer import tiles

# (site, what it sees in each model float32 [tokens, n]) -> each model's matrices to go on with.
Visit = Callable[[Site, list[np.ndarray]], list[Matrices]]


@dataclass
class _Passing:
    """One model: `y` is the input of the linear `queries` float32 [n_head * head_dim, n]."""

    stream: Stream
    y: np.ndarray
    queries: np.ndarray
    keys: np.ndarray
    out: np.ndarray

    def query(self, rows: slice, pool: ThreadPoolExecutor) -> np.ndarray:
        return times(self.y, self.queries[rows], pool)


def attend(block: Block, streams: Sequence[Stream], visit: Visit, pool: ThreadPoolExecutor) -> None:
    """Through the sites before "attn_output", whose input is the streams' y in the end.

    Norms are the same in all models: block's serve all. Raises BadInputError naming the site whose
    input is not finite.
    """
    sizes, latent = block.sizes, latent_of(block.sizes)
    passing = _enter(block, streams, visit, pool)
    for head in range(sizes.n_head):
        rows = slice(head * sizes.head_dim, (head + 1) * sizes.head_dim)
        queries = [each.query(rows, pool) for each in passing]
        still = [query[:, : latent.n_still] for query in queries]
        moved = _through(block, f"attn_k_b.{head}", still, visit, pool)
        mixed = [
            _mix(block, query, at, each.keys, pool)
            for query, (at,), each in zip(queries, moved, passing, strict=True)
        ]
        values = _through(block, f"attn_v_b.{head}", mixed, visit, pool)
        place = slice(head * latent.n_value, (head + 1) * latent.n_value)
        for each, (value,) in zip(passing, values, strict=True):
            each.out[:, place] = value
    for each in passing:
        check_finite(each.out, block.sites["attn_output"].name)
        each.stream.y = each.out


def quantize_latent(
    block: Block, streams: Sequence[Stream], quantize: Quantize, pool: ThreadPoolExecutor
) -> dict[str, list[Encoded]]:
    """The linears of those sites by name, one Encoded per output; streams: see attend.

    They are of the float model, whose weights the block has, and of each output.
    """
    found: dict[str, list[list[Encoded]]] = {}

    def visit(site: Site, x: list[np.ndarray]) -> list[Matrices]:
        linears = {name: matrix(block.weights, name, site) for name in site.weights}
        made = [quantize(n, linears, x[0], other) for n, other in enumerate(x[1:])]
        for name in linears:
            found.setdefault(name, []).append([encoded[name] for encoded, _ in made])
        return [linears, *(decoded for _, decoded in made)]

    attend(block, streams, visit, pool)
    return {name: [stacked(of) for of in zip(*each, strict=True)] for name, each in found.items()}


def _enter(
    block: Block, streams: Sequence[Stream], visit: Visit, pool: ThreadPoolExecutor
) -> list[_Passing]:
    """The sites that all heads share."""
    latent = latent_of(block.sizes)
    y = [stream.y for stream in streams]
    models = visit(block.sites["attn"], y)
    query, made = block.sites["attn"].weights
    keys = [
        keys_of(block, times(one, w[made], pool), stream.x.shape[:2])
        for stream, one, w in zip(streams, y, models, strict=True)
    ]
    if latent.n_query:
        pairs = zip(y, models, strict=True)
        y = [block.norm(times(one, w[query], pool), QUERY_NORM) for one, w in pairs]
        models = visit(block.sites["attn_q_b"], y)
        (query,) = block.sites["attn_q_b"].weights
    width = block.sizes.n_head * latent.n_value
    return [
        _Passing(stream, one, w[query], own, hidden_states((len(one), width)))
        for stream, one, w, own in zip(streams, y, models, keys, strict=True)
    ]


def _through(
    block: Block, short: str, x: list[np.ndarray], visit: Visit, pool: ThreadPoolExecutor
) -> list[list[np.ndarray]]:
    """The outputs of a site's linears in each model."""
    site = block.sites[short]
    for one in x:
        check_finite(one, site.name)
    models = visit(site, x)
    return [
        [times(one, w[name], pool) for name in site.weights]
        for one, w in zip(x, models, strict=True)
    ]


def _mix(
    block: Block, query: np.ndarray, moved: np.ndarray, keys: np.ndarray, pool: ThreadPoolExecutor
) -> np.ndarray:
    """See mix_latents, in tiles of windows."""
    (n_windows, n_ctx), found = keys.shape[:2], hidden_states(moved.shape)

    def fill(tile: slice) -> None:
        rows = slice(tile.start * n_ctx, tile.stop * n_ctx)
        found[rows] = mix_latents(block, query[rows], moved[rows], keys[tile])

    list(pool.map(fill, tiles(n_windows, n_ctx)))
    return found
