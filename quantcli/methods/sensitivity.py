"""What a tensor costs the model in each type: an estimate of the KL divergence per token, in nats.

To second order the divergence that an error dW of a linear y = W x causes is

    1/2 sum over r of G_r (dW H dW^T)_rr,    H = mean of x x^T,    G_r = mean of g_r^2,

g being the gradient of -log p(token) at y with tokens drawn from the model itself: the Fisher
information, taken as independent of x and between outputs (Martens and Grosse 2015, sections 2 and
3.1). Rows of the embedding are looked up: there the metric over columns is M = mean of g g^T, and
each row counts as often as its token comes. Of an expert, H is that of its own tokens and G, 0 for
all others, the mean over all tokens; a stack of experts costs what they cost together.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from quantcli.blas import one_thread
from quantcli.calibration import Imatrix
from quantcli.calibration.statistics import Statistics, Wanted
from quantcli.errors import BadInputError
from quantcli.model import Model, stacked
from quantcli.progress import Progress
from quantcli.tensor_types import TensorType
from quantcli.transformer import Site, Transformer, gradients
from quantcli.transformer.layout import EMBEDDING, head_name

TOKENS = 16 * 512  # enough for the estimate: twice as many change it by a few percent
MEASURED_WEIGHTS = 1 << 19  # of a tensor, in whole rows
EXPERT_ROWS = 16  # of each expert, at least

Candidates = Mapping[str, Sequence[TensorType]]
Divergences = dict[str, dict[str, float]]


def divergences(
    model: Model,
    windows: np.ndarray,
    candidates: Candidates,
    imatrix: Imatrix | None,
    *,
    threads: int = 1,
    progress: Progress | None = None,
) -> Divergences:
    """The estimate for each tensor of `candidates` and each of its types, by their names.

    windows: token ids int32 [n_windows, n_ctx]. Rounding to nearest stands for all methods;
    imatrix: the importance that it will use, None for the mean squares of these windows. One
    block's weights, its Hessians and what its experts see are in memory at a time.

    Raises BadInputError (a weight that a type cannot hold, naming the tensor), and what
    transformer.gradients and Transformer.hidden raise.
    """
    found = gradients(model, windows, threads=threads, progress=progress)
    measure = _Measure(model, found.outputs, candidates, imatrix, threads)
    hidden = Transformer(model, threads=threads).hidden(windows, measure.see, progress)
    head = Site("the output", (head_name(model),))
    for window in hidden:
        measure.see(head, window)
    measure.finish_block()
    ids, counts = np.unique(windows, return_counts=True)
    weights = np.zeros(model.shapes[EMBEDDING][0])
    weights[ids] = counts / windows.size
    measure.add([_Task(EMBEDDING, _Moments(found.embedding_metric()), weights)])
    return measure.found


class _Metric(Protocol):
    """A metric over columns: `diagonal` float32 [n], and the square of each error [rows, n]."""

    @property
    def diagonal(self) -> np.ndarray: ...

    def squares(self, error: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class _Moments:
    """h float32 [n, n]."""

    h: np.ndarray

    @property
    def diagonal(self) -> np.ndarray:
        return np.diag(self.h)

    def squares(self, error: np.ndarray) -> np.ndarray:
        return np.vecdot(error @ self.h, error)


@dataclass(frozen=True)
class _Inputs:
    """The mean of x x^T over inputs float32 [tokens, n] that are fewer than n."""

    x: np.ndarray

    @property
    def diagonal(self) -> np.ndarray:
        return np.square(self.x).mean(axis=0)

    def squares(self, error: np.ndarray) -> np.ndarray:
        y = error @ self.x.T
        return np.vecdot(y, y) / np.float32(len(self.x))


def _metric_of(x: np.ndarray) -> _Metric:
    """Of inputs [tokens, n], with as little work as it takes."""
    if len(x) < x.shape[1]:
        return _Inputs(x)
    with one_thread():
        return _Moments(x.T @ x / np.float32(len(x)))


@dataclass(frozen=True)
class _Task:
    """A matrix, the metric over its columns, and its rows' weights [n_rows].

    expert: whose matrix of a stack it is, None where the tensor is one matrix.
    """

    name: str
    metric: _Metric
    weights: np.ndarray
    expert: int | None = None


class _Measure:
    """Gathers what a block's sites see, measures its tensors, and forgets it.

    Of experts the inputs are kept: of all of them together they take less room than the Hessian of
    each would.
    """

    def __init__(
        self,
        model: Model,
        outputs: Mapping[str, np.ndarray],
        candidates: Candidates,
        imatrix: Imatrix | None,
        threads: int,
    ) -> None:
        self._model, self._outputs, self._candidates = model, outputs, candidates
        self._imatrix, self._threads = imatrix, threads
        self._statistics = Statistics(Wanted(hessian=True), threads)
        self._of_experts: dict[Site, list[np.ndarray]] = {}
        self._block = ""
        self.found: Divergences = {}

    def see(self, site: Site, x: np.ndarray) -> None:
        """A tap: inputs x [tokens, n] of a site; with the first of a block the last one ends."""
        block = site.name.rpartition(".")[0] if site.expert is None else self._block
        if block != self._block:
            self.finish_block()
            self._block = block
        if site.expert is None:
            self._statistics(site, x)
        else:
            self._of_experts.setdefault(site, []).append(x)

    def finish_block(self) -> None:
        """Measure all linears whose inputs have been seen."""
        for name in self._statistics.sites:
            seen = self._statistics.take(name)
            if seen.hessian is not None:
                h = seen.hessian / np.float32(seen.count)
                self.add(_Task(name, _Moments(h), self._outputs[name]) for name in seen.weights)
        while self._of_experts:
            site, parts = self._of_experts.popitem()
            metric = _metric_of(np.concatenate(parts))
            self.add(
                _Task(name, metric, self._outputs[name][site.expert], site.expert)
                for name in site.weights
            )

    def add(self, tasks: Iterable[_Task]) -> None:
        """Measure matrices in each of their types; an estimate adds to what is there.

        A tied embedding is both looked up and multiplied with; a stack is the sum of its experts.
        """
        jobs = [
            (task, self._importance(task), kind)
            for task in tasks
            for kind in self._candidates.get(task.name, ())
        ]
        with one_thread(), ThreadPoolExecutor(self._threads) as pool:
            for (task, _, kind), error in zip(jobs, pool.map(self._error, jobs), strict=True):
                errors = self.found.setdefault(task.name, {})
                errors[kind.name] = errors.get(kind.name, 0.0) + error

    def _importance(self, task: _Task) -> np.ndarray | None:
        if self._imatrix is None:
            return task.metric.diagonal
        shape = self._model.shapes[task.name]
        found = self._imatrix.importance(task.name, shape[-1], stacked(shape))
        return found if found is None or task.expert is None else found[task.expert]

    def _error(self, job: tuple[_Task, np.ndarray | None, TensorType]) -> float:
        task, importance, kind = job
        shape = self._model.shapes[task.name]
        most = MEASURED_WEIGHTS // shape[-1]
        if task.expert is not None:
            most = max(EXPERT_ROWS, most // stacked(shape))
        rows, shares = sample_rows(task.weights, most)
        w = self._model.rows(task.name, rows + (task.expert or 0) * len(task.weights))
        try:
            error = kind.decode(kind.encode(w, importance)) - w
        except BadInputError as reason:
            raise BadInputError(f"tensor {task.name!r} as {kind.name}: {reason}") from None
        return float(task.metric.squares(error) @ shares) / 2


def sample_rows(weights: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` rows and their shares: sum of shares * f(rows) ~ sum of weights * f.

    All rows where there are no more; else a systematic sample, each as likely as it weighs.
    """
    most = max(1, most)
    if len(weights) <= most:
        return np.arange(len(weights)), weights
    sums = np.cumsum(weights)
    drawn = np.searchsorted(sums, (np.arange(most) + 0.5) / most * sums[-1])
    rows, counts = np.unique(np.minimum(drawn, len(weights) - 1), return_counts=True)
    return rows, counts * (sums[-1] / most)
