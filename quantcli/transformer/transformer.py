"""The forward pass: block by block over all windows, so that one block's weights are in memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np

from quantcli.blas import one_thread
from quantcli.errors import BadInputError, UsageError
from quantcli.model import Model
from quantcli.parallel import in_order
from quantcli.progress import Progress, Silent
from quantcli.transformer.activations import layer_norm, rms_norm
from quantcli.transformer.block import TILE_TOKENS, Block, Rounding, check_finite
from quantcli.transformer.hyperparameters import read_hyperparameters
from quantcli.transformer.layout import (
    EMBEDDING,
    POSITIONS,
    TOKEN_TYPES,
    check_tensors,
    embedding_norm,
    head_name,
    output_norm,
    rope_factors,
)
from quantcli.transformer.rounding import round_like_llama_cpp
from quantcli.transformer.scratch import hidden_states
from quantcli.transformer.sites import Site, Tap, sites_of

# The size of a piece of work is fixed, so that results do not depend on the number of threads.
PIECE_WEIGHTS = 1 << 22

KEPT_HEAD = 256 << 20  # bytes

ROUNDINGS: dict[str, Rounding | None] = {"float": None, "llama-cpu": round_like_llama_cpp}

Captured = list[tuple[Site, np.ndarray]]


class Transformer:
    """A model ready to run; `n_vocab`, `n_embd`, `n_block`, `n_ctx` (longest window): sizes.

    `hidden` and `logits` run it as a whole; the other methods are the steps of a run.
    """

    def __init__(self, model: Model, *, threads: int = 1, activations: str = "float") -> None:
        """activations: "float", or "llama-cpu" to round them as llama.cpp's CPU runtime does.

        Raises UsageError, UnsupportedError (no forward pass for this architecture), BadInputError
        (metadata and tensors contradict each other).
        """
        if activations not in ROUNDINGS:
            raise UsageError(f"activations {activations!r} is not one of {', '.join(ROUNDINGS)}")
        self._model, self._threads = model, threads
        self._rounding = ROUNDINGS[activations]
        self.sizes = read_hyperparameters(model.metadata, model.shapes)
        check_tensors(model, self.sizes)
        self._head = head_name(model)
        self._kept: dict[int, np.ndarray] = {}
        self.n_vocab, self.n_embd = model.shapes[EMBEDDING]
        self.n_ctx, self.n_block = self.sizes.n_ctx, self.sizes.n_block

    @property
    def sites(self) -> list[Site]:
        """All sites in the order in which `hidden` taps them."""
        blocks = range(self.n_block)
        return [site for number in blocks for site in sites_of(self.sizes, number).values()]

    def hidden(
        self, tokens: np.ndarray, tap: Tap | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """Hidden states float32 [n_windows, n_ctx, n_embd] after the output norm, if there is one.

        tokens: ids [n_windows, n_ctx]. `tap(site, x)` gets the input x float32 [tokens, n_in] of
        each site of each block, in several calls, windows in order, on the calling thread; the
        input of the output head is what is returned.

        Raises UsageError (windows too long), BadInputError (ids outside the vocabulary, activations
        not finite), ResourceError (no room for hidden states).
        """
        self.check(tokens)
        progress = progress or Silent()
        x = hidden_states((*tokens.shape, self.n_embd))
        progress.start("Running the model", x.nbytes * self.n_block)
        with self.pool() as pool:
            for rows in self.vocabulary():
                if _has(tokens, rows):
                    self.embed(tokens, rows, self._model.rows(EMBEDDING, rows), x)
            for number in range(self.n_block):
                self._advance(self.load(number, tokens.shape[1], pool), x, pool, tap, progress)
            if not self.sizes.wiring.embeds:
                norm = partial(self._normalize, x, *output_norm(self._model))
                for _ in in_order(pool, norm, tiles(*tokens.shape), self._threads + 1):
                    pass
        progress.finish()
        return x

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """float32 [n, n_vocab] of hidden states [n, n_embd]; callers keep n small.

        Of a model that predicts tokens, not of one that embeds.
        """
        logits = np.empty((len(hidden), self.n_vocab), np.float32)
        x = np.ascontiguousarray(hidden, np.float32)
        if self._rounding is not None:
            x = self._rounding(x, self._model.types[self._head])

        def work(rows: slice) -> None:
            part = logits[:, rows]
            np.matmul(x, self._head_rows(rows).T, out=part)
            if self.sizes.logit_scale != 1:
                part *= np.float32(self.sizes.logit_scale)
            if self.sizes.logit_cap:
                cap = np.float32(self.sizes.logit_cap)
                part[...] = np.tanh(part / cap) * cap

        with self.pool() as pool:
            for _ in in_order(pool, work, self.vocabulary(), self._threads + 1):
                pass
        return logits

    def check(self, tokens: np.ndarray) -> None:
        """Refuse windows that the model cannot run.

        Raises UsageError (windows too long), BadInputError (ids outside the vocabulary).
        """
        if tokens.ndim != 2 or not tokens.size:
            raise UsageError(f"tokens of shape {tokens.shape} are not windows of a context")
        if tokens.shape[1] > self.n_ctx:
            raise UsageError(
                f"a context of {tokens.shape[1]} tokens is longer than the model's {self.n_ctx}"
            )
        if tokens.min() < 0 or tokens.max() >= self.n_vocab:
            wrong = int(tokens.min() if tokens.min() < 0 else tokens.max())
            raise BadInputError(
                f"token {wrong} is not in the model's vocabulary of {self.n_vocab}: the text was"
                " encoded for another model"
            )

    @contextmanager
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        """Threads for pieces of work, each of which computes with one BLAS thread."""
        with one_thread(), ThreadPoolExecutor(self._threads) as pool:
            yield pool

    def vocabulary(self) -> list[slice]:
        """The rows of the embedding and of the head in pieces of about PIECE_WEIGHTS weights."""
        step = max(1, PIECE_WEIGHTS // self.n_embd)
        starts = range(0, self.n_vocab, step)
        return [slice(start, min(start + step, self.n_vocab)) for start in starts]

    def embed(self, tokens: np.ndarray, rows: slice, table: np.ndarray, x: np.ndarray) -> None:
        """Fill x [n_windows, n_ctx, n_embd] where a token is one of `rows`, of values table."""
        for tile, here, found in self.embedded(tokens, rows, table):
            if self.sizes.wiring.embedding_norm:
                found = layer_norm(found, *embedding_norm(self._model), self.sizes.eps)
            x[tile][here] = found

    def embedded(
        self, tokens: np.ndarray, rows: slice, table: np.ndarray
    ) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """For each tile where a token is one of `rows`, bool, and what embeds it, not yet normed.

        That is float32 [n, n_embd] of values table, with what is added for places and types.
        """
        places = kind = None
        if self.sizes.wiring.positions:
            places = self._model.rows(POSITIONS, slice(tokens.shape[1]))
        if TOKEN_TYPES in self._model.shapes:
            kind = self._model.rows(TOKEN_TYPES, slice(1))
        for tile in tiles(*tokens.shape):
            ids = tokens[tile] - rows.start
            here = (ids >= 0) & (ids < len(table))
            found = table[ids[here]] * np.float32(self.sizes.embedding_scale)
            if kind is not None:
                found += kind
            if places is not None:
                found += places[np.nonzero(here)[1]]
            yield tile, here, found

    def load(self, number: int, n_ctx: int, pool: ThreadPoolExecutor) -> Block:
        """A block with its weights, for windows of n_ctx tokens."""
        weights, table = self.weights(number, pool), self.rope_table(number, n_ctx)
        return Block(number, self.sizes, weights, self._model.types, table, self._rounding)

    def weights(self, number: int, pool: ThreadPoolExecutor) -> dict[str, np.ndarray]:
        """A block's tensors in float32 by name."""
        prefix = f"blk.{number}."
        names = [name for name in self._model.shapes if name.startswith(prefix)]
        found = zip(names, pool.map(self._model.rows, names), strict=True)
        return {name: w.reshape(self._model.shapes[name]) for name, w in found}

    def normalize(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None
    ) -> np.ndarray:
        """The output norm, of that weight and bias, over hidden states [..., n_embd].

        Raises BadInputError when the result is not finite.
        """
        with np.errstate(all="ignore"):
            if self.sizes.wiring.norm == "rms":
                y = rms_norm(x, weight, self.sizes.eps)
            else:
                y = layer_norm(x, weight, bias, self.sizes.eps)
        check_finite(y, "the output norm")
        return y

    def _normalize(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, tile: slice
    ) -> None:
        x[tile] = self.normalize(x[tile], weight, bias)

    def _advance(
        self,
        block: Block,
        x: np.ndarray,
        pool: ThreadPoolExecutor,
        tap: Tap | None,
        progress: Progress,
    ) -> None:
        """One block over all windows."""
        work = partial(_run, block, x, tap is not None)
        for tile, captured in in_order(pool, work, tiles(*x.shape[:2]), self._threads + 1):
            if tap is not None:
                for site, values in captured:
                    tap(site, values)
                captured.clear()  # or it is kept while the next tile is waited for
            progress.advance(x[tile].nbytes)

    def rope_table(self, number: int, n_ctx: int) -> np.ndarray:
        """How a block turns q and k, see Rope.table; no dimension of it if it does not."""
        factors = rope_factors(self._model, self.sizes, n_ctx)
        if self.sizes.wiring.local_rope and self.sizes.windows[number]:
            table = self.sizes.local_rope.table(n_ctx)
        else:
            table = self.sizes.rope.table(n_ctx, factors)
        every = self.sizes.wiring.unturned_every
        unturned = not self.sizes.wiring.rope or (every and (number + 1) % every == 0)
        return table[..., :0] if unturned else table

    def _head_rows(self, rows: slice) -> np.ndarray:
        """Rows of the output head: decoded once if it is small, else whenever asked for."""
        if 4 * self.n_vocab * self.n_embd > KEPT_HEAD:
            return self._model.rows(self._head, rows)
        if rows.start not in self._kept:
            self._kept[rows.start] = self._model.rows(self._head, rows)
        return self._kept[rows.start]


def tiles(n_windows: int, n_ctx: int) -> Iterator[slice]:
    """Runs of windows of about TILE_TOKENS tokens."""
    step = max(1, TILE_TOKENS // n_ctx)
    for start in range(0, n_windows, step):
        yield slice(start, min(start + step, n_windows))


def _run(block: Block, x: np.ndarray, keep: bool, tile: slice) -> Captured:
    """Advance a tile of windows; the sites' inputs if they are to be kept."""
    captured: Captured = []

    def tap(site: Site, values: np.ndarray) -> None:
        if keep:
            captured.append((site, values))

    with np.errstate(all="ignore"):  # what is not finite is found by check_finite
        block.run(x[tile], tap)
    return captured


def _has(tokens: np.ndarray, rows: slice) -> bool:
    return bool(((tokens >= rows.start) & (tokens < rows.stop)).any())
