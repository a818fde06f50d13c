"""The output head: tokens drawn from the model's own predictions, and gradients of -log p."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from quantcli.model import Model
from quantcli.parallel import in_order
from quantcli.transformer.attention import soft_cap
from quantcli.transformer.block import check_finite
from quantcli.transformer.derivatives import layer_norm_and_pull, norm_and_pull
from quantcli.transformer.hyperparameters import Hyperparameters
from quantcli.transformer.layout import head_name, output_norm

# Fixed, so that results do not depend on the number of threads.
PIECE_WEIGHTS = 1 << 22
TILE_TOKENS = 512


class SampledHead:
    """Output norm and head over all tokens, one piece of the vocabulary after the other.

    Neither head nor logits are ever there as a whole: a first walk over the pieces finds their
    shares of the predictions, a second one draws tokens and pulls -log p back.
    """

    def __init__(self, model: Model, sizes: Hyperparameters, x: np.ndarray, dx: np.ndarray) -> None:
        """x: what the last block returns, float32 [n, n_embd]; dx: room for its gradients."""
        self.name = head_name(model)
        self._model, self._x, self._dx = model, x, dx
        weight, bias = output_norm(model)
        if sizes.wiring.norm == "rms":
            self._norm = partial(norm_and_pull, weight=weight, eps=sizes.eps)
        else:
            self._norm = partial(layer_norm_and_pull, weight=weight, bias=bias, eps=sizes.eps)
        self._scale, self._cap = np.float32(sizes.logit_scale), sizes.logit_cap
        n_vocab, n_embd = model.shapes[self.name]
        step = max(1, PIECE_WEIGHTS // n_embd)
        self._pieces = [slice(row, row + step) for row in range(0, n_vocab, step)]
        self.tokens = np.zeros(len(x), np.int64)
        self.squares = np.zeros(n_vocab)

    def pull(self, draws: np.ndarray, pool: ThreadPoolExecutor, ahead: int) -> None:
        """Fill dx, `tokens` [n] and `squares` [n_vocab], which sums over tokens the squared
        gradients of the logits before any scale and soft cap; at most `ahead` tiles are in work.

        draws: float64 [n], uniform in [0, 1); a token is the first one at which the running sum of
        the predictions passes its draw.
        """
        starts = range(0, len(self._x), TILE_TOKENS)
        tiles = [slice(start, start + TILE_TOKENS) for start in starts]

        def each_tile(work: Callable[..., np.ndarray]) -> Iterator[tuple[slice, np.ndarray]]:
            def quietly(tile: slice) -> np.ndarray:
                with np.errstate(all="ignore"):  # what is not finite is found by check_finite
                    return work(tile)

            return in_order(pool, quietly, tiles, ahead)

        log_sums = np.empty((len(self._x), len(self._pieces)))
        for number, rows in enumerate(self._pieces):
            w = self._model.rows(self.name, rows)
            for tile, found in each_tile(partial(self._log_sum, w)):
                log_sums[tile, number] = found
        check_finite(log_sums, "the output head")
        log_total = np.logaddexp.reduce(log_sums, axis=1)
        passed = np.exp(log_sums - log_total[:, None]).cumsum(axis=1)
        chosen = (passed[:, :-1] <= draws[:, None]).sum(axis=1)
        for number, rows in enumerate(self._pieces):
            w = self._model.rows(self.name, rows)
            before = passed[:, number - 1] if number else 0
            rest = np.where(chosen == number, draws - before, np.nan)
            work = partial(self._pull_piece, w, rows.start, log_total, rest)
            for _, squares in each_tile(work):
                self.squares[rows] += squares
        for tile, dx in each_tile(self._pull_norm):
            self._dx[tile] = dx

    def _logits(self, tile: slice, w: np.ndarray) -> np.ndarray:
        hidden, _ = self._norm(self._x[tile])
        logits: np.ndarray = hidden @ w.T
        if self._scale != 1:
            logits *= self._scale
        if self._cap:
            soft_cap(logits, self._cap)
        return logits

    def _log_sum(self, w: np.ndarray, tile: slice) -> np.ndarray:
        """log of the sum of exp(logits) of a piece, float64 [tokens]."""
        logits = self._logits(tile, w)
        largest = logits.max(axis=1)
        logits -= largest[:, None]
        np.exp(logits, out=logits)
        return largest + np.log(logits.sum(axis=1, dtype=np.float64))

    def _pull_piece(
        self, w: np.ndarray, start: int, log_total: np.ndarray, rest: np.ndarray, tile: slice
    ) -> np.ndarray:
        """Add a piece's share to dx; rest: what of the draws falls into the piece, else NaN."""
        logits = self._logits(tile, w)
        slope = 1 - np.square(logits / np.float32(self._cap)) if self._cap else None
        logits -= log_total[tile, None].astype(np.float32)
        p = np.exp(logits, out=logits)
        here = np.flatnonzero(~np.isnan(rest[tile]))
        sums = p[here].cumsum(axis=1, dtype=np.float64)
        columns = (sums[:, :-1] <= rest[tile][here, None]).sum(axis=1)
        self.tokens[tile][here] = start + columns
        p[here, columns] -= 1
        if slope is not None:
            p *= slope
        if self._scale != 1:
            p *= self._scale
        dx = p @ w
        self._dx[tile] = dx if start == 0 else self._dx[tile] + dx
        return np.einsum("tr,tr->r", p, p)

    def _pull_norm(self, tile: slice) -> np.ndarray:
        _, pull = self._norm(self._x[tile])
        return pull(self._dx[tile])
