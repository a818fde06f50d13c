"""The linears of one site by GPTQ, each compared with plain rounding on tokens held out."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from quantcli.calibration.moments import drift, hessian
from quantcli.methods import gptq
from quantcli.methods.encoded import Encoded, measured
from quantcli.methods.gptq import Correction, Metric
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

    def __init__(
        self, seen: Seen, compensates: bool, threads: int, pool: ThreadPoolExecutor
    ) -> None:
        known, self._held = seen.parts()
        h = hessian(known.x, pool)
        self._importance = np.diag(h).copy()
        self._correction = Correction.of(h, drift(known.reference, known.x, pool), threads)
        self._metric = Metric.of(h, threads=threads) if compensates else None
        self._threads = threads

    def quantize(self, w: np.ndarray, kind: TensorType) -> Encoded:
        """Rows w float32 [rows, n] in that type: corrected, else not, else by plain rounding."""
        rounded = kind.encode(w, self._importance)
        target = self._correction.target(w, self._threads)
        found = better(w, kind, rounded, self._encode(target, kind), self._error)
        if found.cost.of_rounding == 1 and self._metric is not None:
            found = better(w, kind, rounded, self._encode(w, kind), self._error)
        return found

    def _encode(self, target: np.ndarray, kind: TensorType) -> np.ndarray:
        if self._metric is None:
            return kind.encode(target, self._importance)
        return gptq.quantize(target, self._metric, kind, threads=self._threads)

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

    def __init__(self, metric: np.ndarray, threads: int) -> None:
        self._m = metric
        self._importance = np.diag(metric).copy()
        self._metric = Metric.of(metric, LOOKUP_DAMPING, threads)
        self._threads = threads

    def quantize(self, w: np.ndarray, kind: TensorType) -> Encoded:
        """Rows w float32 [rows, n] in that type, by GPTQ unless plain rounding is better."""
        rounded = kind.encode(w, self._importance)
        packed = gptq.quantize(w, self._metric, kind, threads=self._threads)
        return better(w, kind, rounded, packed, self._error)

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
