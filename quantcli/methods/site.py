"""The linears of one site by GPTQ, each compared with plain rounding on tokens held out."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from quantcli.calibration.moments import drift, hessian
from quantcli.methods import gptq
from quantcli.methods.encoded import Encoded, measured
from quantcli.tensor_types import TensorType

LOOKUP_DAMPING = 0.1


@dataclass(frozen=True)
class Seen:
    """What a site gets to see, float32 [tokens, n]: in the float model, and in the quantized one.

    The last `held` tokens are for comparing, the others for statistics.
    """

    reference: np.ndarray
    x: np.ndarray
    held: int

    def parts(self) -> tuple["Seen", "Seen"]:
        """The tokens for statistics and those for comparing."""
        middle = len(self.x) - self.held
        known, held = slice(0, middle), slice(middle if self.held else 0, None)
        return (
            Seen(self.reference[known], self.x[known], 0),
            Seen(self.reference[held], self.x[held], 0),
        )


class Site:
    """Statistics of one site, good for all linears that read it."""

    def __init__(self, seen: Seen, compensates: bool, pool: ThreadPoolExecutor) -> None:
        known, self._held = seen.parts()
        h = hessian(known.x, pool)
        self._importance = np.diag(h).copy()
        self._correction = gptq.correction(h, drift(known.reference, known.x, pool), pool)
        self._metric = gptq.Metric.of(h, pool) if compensates else None
        self._pool = pool

    def quantize(self, w: np.ndarray, kind: TensorType) -> Encoded:
        """Rows w float32 [rows, n] in that type, unless plain rounding answers better."""
        rounded = kind.encode(w, self._importance)
        target = w + w @ self._correction
        if self._metric is None:
            packed = kind.encode(target, self._importance)
        else:
            packed = gptq.quantize(target, self._metric, kind, self._pool)
        return better(w, kind, rounded, packed, self._error)

    def _error(self, w: np.ndarray, decoded: np.ndarray) -> float:
        """Of the outputs on the tokens held out."""
        wanted = self._held.reference @ w.T
        wanted -= self._held.x @ decoded.T
        return float(np.vdot(wanted, wanted))


class Lookup:
    """Rows that are looked up: what an error in them does to the model's predictions.

    M = E[g gᵀ] of the gradients g of -log p(token) at the embedding's output stands for H, tokens
    drawn from the model's own predictions (the Fisher information).
    """

    def __init__(self, metric: np.ndarray, pool: ThreadPoolExecutor) -> None:
        self._m = metric
        self._importance = np.diag(metric).copy()
        self._metric = gptq.Metric.of(metric, pool, damping=LOOKUP_DAMPING)
        self._pool = pool

    def quantize(self, w: np.ndarray, kind: TensorType) -> Encoded:
        """Rows w float32 [rows, n] in that type, by GPTQ unless plain rounding is better."""
        rounded = kind.encode(w, self._importance)
        return better(
            w, kind, rounded, gptq.quantize(w, self._metric, kind, self._pool), self._error
        )

    def _error(self, w: np.ndarray, decoded: np.ndarray) -> float:
        difference = decoded - w
        return float(np.vdot(difference @ self._m, difference))


def better(
    w: np.ndarray,
    kind: TensorType,
    rounded: np.ndarray,
    packed: np.ndarray,
    error: Callable[[np.ndarray, np.ndarray], float],
) -> Encoded:
    """`packed` if its error is below that of plain rounding, else the latter."""
    plain, ours = (error(w, kind.decode(each)) for each in (rounded, packed))
    found = measured(w, packed if ours < plain else rounded, kind)
    cost = replace(found.cost, output_error=min(ours, plain), rounding_error=plain)
    return replace(found, cost=cost)
