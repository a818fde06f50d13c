"""Predictions of several models on the same tokens, read together, a tile of tokens at a time.

The reference's logits are computed once for all models and never stored. Memory: the hidden states
of the scored tokens of each model, and two tiles of logits.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quantcli.evaluation.protocol import Softmax
from quantcli.progress import Progress

TILE_LOGITS = 1 << 25
PIECE_LOGITS = 1 << 18  # of a tile, for one thread at a time; stays in its cache


class Head(Protocol):
    """The end of a model."""

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Float32 [n, n_vocab] of final hidden states [n, n_embd]."""


@dataclass(frozen=True)
class Predictions:
    """What one model says of n tokens; `kld`, from the reference, is not filled for itself."""

    nll: np.ndarray  # float64
    top: np.ndarray  # int64
    kld: np.ndarray  # float64

    @classmethod
    def empty(cls, n: int) -> "Predictions":
        """Room for n tokens."""
        return cls(np.full(n, np.nan), np.zeros(n, np.int64), np.full(n, np.nan))


def read_predictions(
    heads: Sequence[Head],
    hidden: Sequence[np.ndarray],
    wanted: np.ndarray,
    n_vocab: int,
    threads: int,
    progress: Progress,
) -> list[Predictions]:
    """Predictions of every model, and the divergence of all others from the first.

    hidden: float32 [n, n_embd] of each; wanted: the n tokens that should have been predicted.
    """
    n = len(wanted)
    found = [Predictions.empty(n) for _ in heads]
    progress.start("Predicting", 4 * n * n_vocab * len(heads))
    with ThreadPoolExecutor(threads) as pool:
        for tile in _runs(n, TILE_LOGITS // n_vocab):
            expected = heads[0].logits(hidden[0][tile])
            for i, (head, states) in enumerate(zip(heads, hidden, strict=True)):
                logits = head.logits(states[tile]) if i else expected
                part = Predictions(*(values[tile] for values in vars(found[i]).values()))
                _read(pool, part, wanted[tile], logits, expected)
                progress.advance(logits.nbytes)
    progress.finish()
    return found


def _read(
    pool: ThreadPoolExecutor,
    found: Predictions,
    wanted: np.ndarray,
    logits: np.ndarray,
    expected: np.ndarray,
) -> None:
    """Fill in one tile of one model."""

    def read(piece: slice) -> None:
        softmax = Softmax.of(logits[piece])
        found.nll[piece] = softmax.nll(wanted[piece])
        found.top[piece] = softmax.top
        if logits is not expected:
            found.kld[piece] = Softmax.of(expected[piece]).kld(softmax)

    n, n_vocab = logits.shape
    list(pool.map(read, _runs(n, PIECE_LOGITS // n_vocab)))


def _runs(n: int, length: int) -> Iterator[slice]:
    length = max(1, length)
    for start in range(0, n, length):
        yield slice(start, min(start + length, n))
