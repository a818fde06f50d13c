"""Predictions of several models of one vocabulary, read together: each logit is computed once.

Beside the final hidden states of the scored tokens, memory holds four tiles of logits.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quantcli.evaluation.protocol import Divergence, Softmax
from quantcli.progress import Progress

TILE_LOGITS = 8 << 20  # per tile: all scored tokens by a slice of the vocabulary
FEWEST_COLUMNS = 64
PIECE_LOGITS = 1 << 18  # that one thread works on at a time; stays in its cache


# A piece of the scored tokens, and what Softmax.add returned for it.
Added = tuple[slice, np.ndarray, np.ndarray]


class Head(Protocol):
    """The end of a model: final hidden states float32 [n, n_embd] to logits."""

    def logits(self, hidden: np.ndarray, vocabulary: slice) -> np.ndarray:
        """Float32 [n, entries of the slice]."""


@dataclass(frozen=True)
class Predictions:
    """What one model says of the scored tokens; `divergence` is None for the reference."""

    softmax: Softmax
    divergence: Divergence | None


def read_predictions(
    heads: Sequence[Head],
    hidden: Sequence[np.ndarray],
    wanted: np.ndarray,
    n_vocab: int,
    threads: int,
    progress: Progress,
) -> list[Predictions]:
    """Softmax of every model over its logits, and divergence from the first, the reference.

    hidden: float32 [n, n_embd] of each; wanted: the n tokens that should have been predicted.
    """
    reference = Softmax(wanted)
    others = [
        Predictions(model := Softmax(wanted), Divergence(reference, model)) for _ in heads[1:]
    ]
    n = len(wanted)
    columns = max(FEWEST_COLUMNS, TILE_LOGITS // n)
    progress.start("Predicting", 4 * n * n_vocab * len(heads))
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, n_vocab, columns):
            vocabulary = slice(first, min(first + columns, n_vocab))
            expected = heads[0].logits(hidden[0], vocabulary)
            added = _add(pool, reference, first, expected)
            progress.advance(expected.nbytes)
            for head, states, predictions in zip(heads[1:], hidden[1:], others, strict=True):
                logits = head.logits(states, vocabulary)
                _compare(pool, predictions, first, logits, expected, added)
                progress.advance(logits.nbytes)
    progress.finish()
    return [Predictions(reference, None), *others]


def _add(
    pool: ThreadPoolExecutor, reference: Softmax, first: int, logits: np.ndarray
) -> list[Added]:
    """A tile of the reference, piece by piece."""

    def add(piece: slice) -> Added:
        return piece, *reference.add(piece, first, logits[piece])

    return list(pool.map(add, _pieces(*logits.shape)))


def _compare(
    pool: ThreadPoolExecutor,
    predictions: Predictions,
    first: int,
    logits: np.ndarray,
    expected: np.ndarray,
    added: list[Added],
) -> None:
    """The same tile of another model."""

    def compare(reference: Added) -> None:
        piece, weights, shrink = reference
        predictions.softmax.add(piece, first, logits[piece])
        if predictions.divergence is not None:
            difference = expected[piece] - logits[piece]
            predictions.divergence.add(piece, weights, shrink, difference)

    list(pool.map(compare, added))


def _pieces(n: int, columns: int) -> Iterator[slice]:
    step = max(1, PIECE_LOGITS // columns)
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
