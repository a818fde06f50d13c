"""llama-perplexity's protocol on plain arrays: perplexity, KL divergence, agreement.

The vocabulary is seen tile by tile, so that neither [tokens, vocabulary] arrays nor a whole output
matrix are ever held: a softmax's sums can be carried along while its maximum grows.
"""

from dataclasses import dataclass

import numpy as np

SHORTEST_CONTEXT = 4  # one scored token


def scored(context: int) -> slice:
    """Positions in a window whose logits count: they predict the tokens of its second half."""
    return slice(context // 2, context - 1)


def targets(windows: np.ndarray) -> np.ndarray:
    """The tokens that the scored positions must predict: int32, flat, window by window."""
    at = scored(windows.shape[1])
    return windows[:, at.start + 1 : at.stop + 1].reshape(-1)


class Softmax:
    """Running softmax of n tokens' logits over a vocabulary that comes tile by tile.

    `nll` float64 [n] and `top` int64 [n] hold once every tile has been added.
    """

    def __init__(self, wanted: np.ndarray) -> None:
        n = len(wanted)
        self._wanted = wanted
        self._peak = np.full(n, -np.inf, np.float32)
        self._logit = np.full(n, np.nan, np.float32)
        self.total = np.zeros(n)  # of exp(logit - peak)
        self.top = np.zeros(n, np.int64)

    def add(self, tokens: slice, first: int, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take in logits float32 [tokens, columns] of the vocabulary's entries first, first + 1, …

        Returns exp(logits - peak), float32, and the factor that brings sums over earlier tiles to
        the new peak.
        """
        best = logits.argmax(axis=1)
        found = np.take_along_axis(logits, best[:, None], axis=1)[:, 0]
        before = self._peak[tokens]
        peak = np.maximum(before, found)
        self.top[tokens] = np.where(found > before, best + first, self.top[tokens])
        shrink = np.exp((before - peak).astype(np.float64))
        weights = np.exp(logits - peak[:, None])
        self.total[tokens] = self.total[tokens] * shrink + weights.sum(axis=1)
        self._peak[tokens] = peak
        column = self._wanted[tokens] - first
        here = np.flatnonzero((column >= 0) & (column < logits.shape[1]))
        self._logit[tokens][here] = logits[here, column[here]]
        return weights, shrink

    @property
    def log_total(self) -> np.ndarray:
        """log sum exp of the logits, float64 [n]."""
        return self._peak + np.log(self.total)

    @property
    def nll(self) -> np.ndarray:
        """-log p of the wanted tokens, natural logarithm, float64 [n]."""
        return self.log_total - self._logit


class Divergence:
    """Running KL divergence of n tokens' predictions from a reference's: sum p log(p / q)."""

    def __init__(self, reference: Softmax, model: Softmax) -> None:
        self._reference, self._model = reference, model
        self._spread = np.zeros(len(reference.total))  # of exp(reference - peak) * difference

    def add(
        self, tokens: slice, weights: np.ndarray, shrink: np.ndarray, difference: np.ndarray
    ) -> None:
        """Take in a tile: what the reference's `add` returned, and its logits minus the model's."""
        here = (weights * difference).sum(axis=1)
        self._spread[tokens] = self._spread[tokens] * shrink + here

    @property
    def kld(self) -> np.ndarray:
        """Float64 [n], once every tile has been added; rounding may leave it just below 0."""
        mean = self._spread / self._reference.total
        return mean - self._reference.log_total + self._model.log_total


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    value: float
    stderr: float


def mean(values: np.ndarray) -> Estimate:
    """The mean of n independent values and its standard error, sqrt(variance / (n - 1))."""
    n = len(values)
    return Estimate(float(values.mean()), float(values.std() / np.sqrt(n - 1)) if n > 1 else 0.0)


def perplexity(nll: np.ndarray) -> Estimate:
    """exp of the mean negative log likelihood; the error is that of the mean, carried through."""
    found = mean(nll)
    return Estimate(float(np.exp(found.value)), float(np.exp(found.value)) * found.stderr)
