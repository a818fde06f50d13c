"""What a tensor costs the model in each type: an estimate of the KL divergence per token, in nats.

To second order the divergence that an error dW of a linear y = W x causes is

    1/2 sum over r of G_r (dW H dW^T)_rr,    H = mean of x x^T,    G_r = mean of g_r^2,

g being the gradient of -log p(token) at y with tokens drawn from the model itself: the Fisher
information, taken as independent of x and between outputs (Martens and Grosse 2015, sections 2 and
3.1). Rows of the embedding are looked up: there the metric over columns is M = mean of g g^T, and
each row counts as often as its token comes.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from quantcli.blas import one_thread
from quantcli.calibration import Imatrix
from quantcli.calibration.statistics import Statistics, Wanted
from quantcli.errors import BadInputError
from quantcli.model import Model
from quantcli.progress import Progress
from quantcli.tensor_types import TensorType
from quantcli.transformer import Site, Transformer, gradients
from quantcli.transformer.layout import EMBEDDING, head_name

TOKENS = 16 * 512  # enough for the estimate: twice as many change it by a few percent
MEASURED_WEIGHTS = 1 << 19  # of a tensor, in whole rows

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
    block's weights and its Hessians are in memory at a time.

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
    measure.add([_Task(EMBEDDING, found.embedding_metric(), weights)])
    return measure.found


@dataclass(frozen=True)
class _Task:
    """A tensor, the metric over its columns float32 [n, n], and its rows' weights [n_rows]."""

    name: str
    h: np.ndarray
    weights: np.ndarray


class _Measure:
    """Gathers the Hessians of a block's sites, measures its tensors, and forgets the Hessians."""

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
        self._block = ""
        self.found: Divergences = {}

    def see(self, site: Site, x: np.ndarray) -> None:
        """A tap: inputs x [tokens, n] of a site; with the first of a block the last one ends."""
        block = site.name.rpartition(".")[0]
        if block != self._block:
            self.finish_block()
            self._block = block
        self._statistics(site, x)

    def finish_block(self) -> None:
        """Measure all linears whose inputs have been seen."""
        for site in self._statistics.sites:
            seen = self._statistics.take(site)
            if seen.hessian is not None:
                h = seen.hessian / np.float32(seen.count)
                self.add(_Task(name, h, self._outputs[name]) for name in seen.weights)

    def add(self, tasks: Iterable[_Task]) -> None:
        """Measure tensors in each of their types; an estimate adds to what is there.

        A tied embedding is both looked up and multiplied with.
        """
        jobs = [(task, kind) for task in tasks for kind in self._candidates.get(task.name, ())]
        with one_thread(), ThreadPoolExecutor(self._threads) as pool:
            for (task, kind), error in zip(jobs, pool.map(self._error, jobs), strict=True):
                errors = self.found.setdefault(task.name, {})
                errors[kind.name] = errors.get(kind.name, 0.0) + error

    def _error(self, job: tuple[_Task, TensorType]) -> float:
        task, kind = job
        rows, shares = sample_rows(task.weights, MEASURED_WEIGHTS // len(task.h))
        w = self._model.rows(task.name, rows)
        if self._imatrix is None:
            importance: np.ndarray | None = np.diag(task.h)
        else:
            importance = self._imatrix.importance(task.name, len(task.h))
        try:
            error = kind.decode(kind.encode(w, importance)) - w
        except BadInputError as reason:
            raise BadInputError(f"tensor {task.name!r} as {kind.name}: {reason}") from None
        return float(np.vecdot(error @ task.h, error) @ shares) / 2


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
