"""llama-perplexity's protocol on plain arrays: what is scored, and what is made of the scores."""

from dataclasses import dataclass

import numpy as np

SHORTEST_CONTEXT = 4  # one scored token


def scored(context: int) -> slice:
    """Positions in a window whose logits count: they predict the tokens of its second half."""
    return slice(context // 2, context - 1)


def targets(windows: np.ndarray) -> np.ndarray:
    """The tokens that the scored positions must predict, flat, window by window."""
    at = scored(windows.shape[1])
    return windows[:, at.start + 1 : at.stop + 1].reshape(-1)


@dataclass(frozen=True)
class Softmax:
    """Predictions of n tokens from logits float32 [n, n_vocab]."""

    logits: np.ndarray
    weights: np.ndarray  # exp(logits - largest)
    total: np.ndarray  # of weights, float64 [n]
    log_total: np.ndarray  # log of the sum of exp(logits), float64 [n]

    @classmethod
    def of(cls, logits: np.ndarray) -> "Softmax":
        """The softmax of each row."""
        peak = logits.max(axis=1)
        weights = logits - peak[:, None]
        np.exp(weights, out=weights)
        total = weights.sum(axis=1).astype(np.float64)
        return cls(logits, weights, total, peak + np.log(total))

    @property
    def top(self) -> np.ndarray:
        """The likeliest token of each row."""
        return self.logits.argmax(axis=1)

    def nll(self, wanted: np.ndarray) -> np.ndarray:
        """-log p of the wanted tokens, natural logarithm, float64 [n]."""
        return self.log_total - np.take_along_axis(self.logits, wanted[:, None], axis=1)[:, 0]

    def kld(self, other: "Softmax") -> np.ndarray:
        """KL divergence of another model's predictions from these, sum p log(p / q), float64 [n].

        Rounding may leave it just below 0.
        """
        # From differences of logits: those of logarithms of probabilities are less exact.
        mean = (self.weights * (self.logits - other.logits)).sum(axis=1) / self.total
        return mean - self.log_total + other.log_total


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
