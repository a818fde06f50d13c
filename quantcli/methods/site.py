"""The linears of one site by GPTQ, each compared with plain rounding on tokens held out."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from quantcli.calibration.moments import drift, hessian
from quantcli.methods import gptq
from quantcli.methods.encoded import Encoded, measured
from quantcli.methods.gptq import Correction, Metric
from quantcli.tensor_types import TensorType

LOOKUP_DAMPING = 0.1
COMPARED_ROWS = 512  # of a linear at a time, a fixed number: sums do not depend on threads


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
    """Statistics of one site, good for all linears that read it: ask for targets, then quantize.

    Matrices of the input's size are what needs most memory: `corrected` frees two of them.
    """

    def __init__(
        self, seen: Seen, compensates: bool, threads: int, pool: ThreadPoolExecutor
    ) -> None:
        known, self._held = seen.parts()
        self._h = hessian(known.x, pool)
        self._importance = np.diag(self._h).copy()
        self._correction: Correction | None = Correction.of(
            self._h, drift(known.reference, known.x, pool), threads
        )
        self._compensates, self._threads, self._pool = compensates, threads, pool

    def target(self, w: np.ndarray) -> np.ndarray:
        """What rows w float32 [rows, n] should be for the inputs that the quantized model sees."""
        if self._correction is None:
            raise RuntimeError("a target was asked for after the last")
        return self._correction.target(w, self._threads)

    def corrected(self) -> None:
        """No target will be asked for any more."""
        self._correction = None

    def quantize(self, w: np.ndarray, target: np.ndarray, kind: TensorType) -> Encoded:
        """Rows w in that type: those of target, else of w, else plainly rounded."""
        rounded = kind.encode(w, self._importance)
        found = better(w, kind, rounded, self._encode(target, kind), self._errors)
        if found.cost.of_rounding == 1 and self._compensates:
            found = better(w, kind, rounded, self._encode(w, kind), self._errors)
        return found

    @cached_property
    def _metric(self) -> Metric:
        return Metric.of(self._h, threads=self._threads)

    def _encode(self, target: np.ndarray, kind: TensorType) -> np.ndarray:
        if not self._compensates:
            return kind.encode(target, self._importance)
        return gptq.quantize(target, self._metric, kind, threads=self._threads)

    def _errors(self, w: np.ndarray, candidates: Sequence[np.ndarray]) -> list[float]:
        """Squared errors of the outputs on the tokens held out."""

        def some(rows: slice) -> list[float]:
            wanted = self._held.reference @ w[rows].T
            missed = [wanted - self._held.x @ each[rows].T for each in candidates]
            return [float(np.vdot(each, each)) for each in missed]

        pieces = [slice(start, start + COMPARED_ROWS) for start in range(0, len(w), COMPARED_ROWS)]
        return [sum(parts) for parts in zip(*self._pool.map(some, pieces), strict=True)]


class Lookup:
    """Rows that are looked up: what an error in them does to the model's predictions.

    M = E[g gᵀ] of the gradients g of -log p(token) at the embedding's output stands for H, tokens
    drawn from the model's own predictions (the Fisher information).
    """

    def __init__(self, metric: np.ndarray, compensates: bool, threads: int) -> None:
        self._m = metric
        self._importance = np.diag(metric).copy()
        self._metric = Metric.of(metric, LOOKUP_DAMPING, threads) if compensates else None
        self._threads = threads

    def quantize(self, w: np.ndarray, kind: TensorType) -> Encoded:
        """Rows w float32 [rows, n] in that type, by GPTQ unless plain rounding is better."""
        rounded = kind.encode(w, self._importance)
        if self._metric is None:
            return measured(w, rounded, kind)
        packed = gptq.quantize(w, self._metric, kind, threads=self._threads)
        return better(w, kind, rounded, packed, self._errors)

    def _errors(self, w: np.ndarray, candidates: Sequence[np.ndarray]) -> list[float]:
        differences = [each - w for each in candidates]
        return [float(np.vdot(each @ self._m, each)) for each in differences]


def better(
    w: np.ndarray,
    kind: TensorType,
    rounded: np.ndarray,
    packed: np.ndarray,
    errors: Callable[[np.ndarray, Sequence[np.ndarray]], list[float]],
) -> Encoded:
    """`packed` if its error is below that of plain rounding, else the latter."""
    plain, ours = errors(w, [kind.decode(each) for each in (rounded, packed)])
    found = measured(w, packed if ours < plain else rounded, kind)
    cost = replace(found.cost, output_error=min(ours, plain), rounding_error=plain)
    return replace(found, cost=cost)
