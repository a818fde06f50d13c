"""A model's hidden states between two sites: calibration goes through a block site by site."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantcli.transformer.block import Block, check_finite
from quantcli.transformer.scratch import hidden_states
from quantcli.transformer.transformer import tiles

Work = Callable[[np.ndarray, np.ndarray], np.ndarray]

# The site that follows the end of the first half of a block, see Block.leave.
SECOND_HALF = {"attn_output": "ffn"}


class Stream:
    """One model on all windows.

    x: hidden states float32 [n_windows, n_ctx, n_embd]; y: the input float32 [tokens, n_in] of the
    site at hand.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.x = hidden_states(shape)
        self.y = np.empty((0, 0), np.float32)

    def enter(self, block: Block, pool: ThreadPoolExecutor) -> None:
        """Begin a block: y is the input of its first site."""
        first = next(iter(block.sites))

        def work(x: np.ndarray, _: np.ndarray) -> np.ndarray:
            return block.enter(first, x)

        self._fill(block.width(first), work, block.sites[first].name, pool)

    def leave(self, short: str, block: Block, pool: ThreadPoolExecutor) -> None:
        """Through the linears of site `short`, on to the next one; x advances at a half's end."""
        order = list(block.sites)

        def work(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            outputs = [block.linear(name, y) for name in block.sites[short].weights]
            if short not in SECOND_HALF:
                return block.leave(short, x, outputs)
            seen = block.seen_by_mlp(x)
            block.leave(short, x, outputs)
            return block.enter(SECOND_HALF[short], seen)

        following = order[order.index(short) + 1 :]
        width = block.width(following[0]) if following else 0
        where = block.sites[following[0]].name if following else f"the end of {short}"
        self._fill(width, work, where, pool)

    def finish(self, norm: Callable[[np.ndarray], np.ndarray], pool: ThreadPoolExecutor) -> None:
        """End the model: y is the input of its head."""
        width = self.x.shape[-1]
        self._fill(width, lambda x, _: norm(x).reshape(-1, width), "the output norm", pool)

    def _fill(self, width: int, work: Work, where: str, pool: ThreadPoolExecutor) -> None:
        """y = what `work` makes of each tile of x and y, unless it is 0 wide."""
        n_windows, n_ctx, _ = self.x.shape
        found = hidden_states((n_windows * n_ctx, width))

        def store(tile: slice) -> None:
            rows = slice(tile.start * n_ctx, tile.stop * n_ctx)
            with np.errstate(all="ignore"):  # what is not finite is found by check_finite
                y = work(self.x[tile], self.y[rows])
            check_finite(y, where)
            if width:
                found[rows] = y

        list(pool.map(store, tiles(n_windows, n_ctx)))
        self.y = found
