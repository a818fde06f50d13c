"""The backward pass: how the model's own predictions depend on embeddings and on linears."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from quantcli.blas import one_thread
from quantcli.model import Model
from quantcli.parallel import in_order
from quantcli.progress import Progress, Silent
from quantcli.transformer.block import check_finite
from quantcli.transformer.block_pass import BlockPass
from quantcli.transformer.derivatives import layer_norm_and_pull
from quantcli.transformer.layout import EMBEDDING, embedding_norm
from quantcli.transformer.pooling import pull_directions
from quantcli.transformer.sampling import SampledHead
from quantcli.transformer.scratch import hidden_states
from quantcli.transformer.transformer import Transformer

# Fixed, so that results do not depend on the number of threads.
TILE_TOKENS = 512


@dataclass(frozen=True)
class Gradients:
    """Gradients of the sum over positions of -log p(token), tokens drawn from the predictions.

    Of a model that embeds, gradients of pull_directions, which say the same of the cosine
    similarity; its tokens are those of the windows.

    tokens: those drawn, int64 [n_windows, n_ctx]; embedding: the gradients at the rows looked up,
    before any scale, float32 [n_windows, n_ctx, n_embd]; outputs: by the name of each linear's
    weight, the head's included, the mean over tokens of the squared gradients of its outputs,
    float64 [n_out], or a row for each expert. As the tokens are drawn, their second moments
    estimate the Fisher information: for an error dW of a linear with inputs of second moment H, the
    KL divergence per token is about sum_r outputs[r] (dW H dW^T)_rr / 2, and that of an error e of
    a row looked up e M e^T / 2.
    """

    tokens: np.ndarray
    embedding: np.ndarray
    outputs: dict[str, np.ndarray]

    def embedding_metric(self) -> np.ndarray:
        """M = mean over tokens of g g^T, float32 [n_embd, n_embd]."""
        m = np.zeros((self.embedding.shape[-1],) * 2)
        with one_thread():
            for window in self.embedding:
                m += window.T @ window
        return (m / self.tokens.size).astype(np.float32)


def gradients(
    model: Model,
    windows: np.ndarray,
    *,
    threads: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Gradients:
    """Run windows of ids [n_windows, n_ctx] forth and back; `seed` sets the tokens drawn.

    One block's weights are in memory at a time, each is read twice; hidden states are kept before
    each block. Windows are those that Transformer.hidden takes.

    Raises BadInputError (activations or gradients not finite), ResourceError (no room for hidden
    states), and what Transformer and its `check` raise.
    """
    run = Transformer(model, threads=threads)
    run.check(windows)
    with run.pool() as pool:
        return _Walk(model, run, windows, pool, threads + 1, progress or Silent()).run(seed)


class _Walk:
    """Through the blocks and back; x[number] are the hidden states before block `number`."""

    def __init__(
        self,
        model: Model,
        run: Transformer,
        windows: np.ndarray,
        pool: ThreadPoolExecutor,
        ahead: int,
        progress: Progress,
    ) -> None:
        self._model, self._run, self._windows = model, run, windows
        self._sizes = sizes = run.sizes
        self._pool, self._ahead, self._progress = pool, ahead, progress
        self._x = hidden_states((sizes.n_block + 1, *windows.shape, sizes.n_embd))
        self._dx = hidden_states(self._x.shape[1:])
        self._squares: dict[str, np.ndarray] = {}

    def run(self, seed: int) -> Gradients:
        """Forth, the head, and back."""
        blocks = range(self._sizes.n_block)
        self._progress.start("Computing gradients", 2 * self._dx.nbytes * len(blocks))
        for rows in self._run.vocabulary():
            self._run.embed(self._windows, rows, self._model.rows(EMBEDDING, rows), self._x[0])
        for number in blocks:
            self._each_tile(number, self._advance)
        tokens = self._pull_result(seed)
        for number in reversed(blocks):
            self._each_tile(number, self._return)
        dx = self._dx.reshape(-1, self._sizes.n_embd)
        if self._sizes.wiring.embedding_norm:
            self._pull_embedding_norm()
        if self._sizes.embedding_scale != 1:
            dx *= np.float32(self._sizes.embedding_scale)
        self._progress.finish()
        outputs = {name: squares / len(dx) for name, squares in self._squares.items()}
        return Gradients(tokens.reshape(self._windows.shape), self._dx, outputs)

    def _pull_result(self, seed: int) -> np.ndarray:
        """Fill dx at the end of the last block; the tokens drawn."""
        if self._sizes.wiring.embeds:
            self._dx[...] = pull_directions(self._x[-1], self._sizes.pooling, seed)
            return self._windows
        x, dx = (a.reshape(-1, self._sizes.n_embd) for a in (self._x[-1], self._dx))
        head = SampledHead(self._model, self._sizes, x, dx)
        head.pull(np.random.default_rng(seed).random(len(x)), self._pool, self._ahead)
        self._squares[head.name] = head.squares
        return head.tokens

    def _pull_embedding_norm(self) -> None:
        weight, bias = embedding_norm(self._model)
        norm = partial(layer_norm_and_pull, weight=weight, bias=bias, eps=self._sizes.eps)
        for rows in self._run.vocabulary():
            table = self._model.rows(EMBEDDING, rows)
            for tile, here, found in self._run.embedded(self._windows, rows, table):
                _, pull = norm(found)
                self._dx[tile][here] = pull(self._dx[tile][here])

    def _each_tile(self, number: int, work: Callable[[int, BlockPass, slice], None]) -> None:
        """work(number, a new BlockPass, tile) for each tile, with one block's weights loaded."""
        weights = self._run.weights(number, self._pool)
        table = self._run.rope_table(number, self._windows.shape[1])

        def run(tile: slice) -> dict[str, np.ndarray]:
            block = BlockPass(number, self._sizes, weights, table)
            with np.errstate(all="ignore"):  # what is not finite is found by check_finite
                work(number, block, tile)
            return block.squares

        step = max(1, TILE_TOKENS // self._windows.shape[1])
        tiles = [slice(at, at + step) for at in range(0, len(self._windows), step)]
        for tile, squares in in_order(self._pool, run, tiles, self._ahead):
            for name, found in squares.items():
                self._squares[name] = self._squares.get(name, 0.0) + found.astype(np.float64)
            self._progress.advance(self._dx[tile].nbytes)

    def _advance(self, number: int, block: BlockPass, tile: slice) -> None:
        y, _ = block.run(self._x[number, tile])
        check_finite(y, f"the end of block {number}")
        self._x[number + 1, tile] = y

    def _return(self, number: int, block: BlockPass, tile: slice) -> None:
        _, pull = block.run(self._x[number, tile])
        dx = pull(self._dx[tile])
        check_finite(dx, f"the way back through block {number}")
        self._dx[tile] = dx
