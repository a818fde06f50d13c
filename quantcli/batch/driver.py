"""The loop of a batch: lanes of tasks to an executor, each end on disk before the next begins."""

import heapq
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import count

from quantcli.batch.board import Board
from quantcli.batch.children import Outcome
from quantcli.batch.executor import Executor, ExecutorLostError
from quantcli.batch.ledger import FAILED, FINISHED, RETRYING, STARTED, Ledger
from quantcli.batch.retries import retry
from quantcli.batch.task import Task
from quantcli.errors import explain

Lane = deque[Task]


class Driver:
    """Runs lanes of tasks: those of one lane one after the other, retried by exit code."""

    def __init__(
        self, executor: Executor, ledger: Ledger, board: Board, *, fail_fast: bool = False
    ) -> None:
        self._executor, self._ledger, self._board = executor, ledger, board
        self._fail_fast = fail_fast
        self._stopped = False
        self._lanes: deque[Lane] = deque()
        self._running: dict[Future[Outcome], tuple[Task, Lane]] = {}
        self._later: list[tuple[float, int, Task, Lane]] = []
        self._number = count()
        self._ended: set[str] = set()

    def run(self, lanes: Sequence[Sequence[Task]]) -> set[str]:
        """Run all tasks; returns the keys of those that came to an end.

        With fail_fast nothing more is begun after a failure.
        """
        self._lanes = deque(deque(lane) for lane in lanes if lane)
        while self._lanes or self._running or self._later:
            self._start_some()
            self._wait()
        return self._ended

    def _start_some(self) -> None:
        while self._later and self._later[0][0] <= time.monotonic():
            *_, task, lane = heapq.heappop(self._later)
            self._start(task, lane)
        while self._lanes and len(self._running) < self._executor.slots:
            lane = self._lanes.popleft()
            self._start(lane.popleft(), lane)

    def _start(self, task: Task, lane: Lane) -> None:
        if not task.wanted():
            self._go_on(lane)
            return
        refused = task.refusal(self._executor.memory)
        if refused is not None:
            self._end(task, refused, lane)
            return
        task.attempt += 1
        facts = {"name": task.name, "attempt": task.attempt, "outputs": list(task.outputs)}
        self._ledger.add(STARTED, task.key, **facts)
        self._board.started(task.name)
        memory = task.memory(self._executor.memory)
        hear = self._board.hearer(task.name)
        future = self._executor.submit(task.line(), memory, task.cores, hear)
        self._running[future] = (task, lane)

    def _wait(self) -> None:
        pause = max(0.0, self._later[0][0] - time.monotonic()) if self._later else None
        if not self._running:
            time.sleep(pause or 0.0)
            return
        done, _ = wait(self._running, pause, FIRST_COMPLETED)
        for future in done:
            task, lane = self._running.pop(future)
            outcome = _outcome(future)
            again = retry(outcome.exit_code, task.attempt) if outcome.exit_code else None
            if again is None or self._stopped:
                self._end(task, outcome, lane)
                continue
            facts = {"exit_code": outcome.exit_code, "error": outcome.error}
            self._ledger.add(RETRYING, task.key, name=task.name, attempt=task.attempt, **facts)
            task.memory_factor = again.memory
            self._board.again(task.name, outcome, again.delay)
            due = time.monotonic() + again.delay
            heapq.heappush(self._later, (due, next(self._number), task, lane))

    def _end(self, task: Task, outcome: Outcome, lane: Lane) -> None:
        """Write down how a task ended for good."""
        if outcome.exit_code == 0:
            facts = {"name": task.name, "attempts": task.attempt, **task.facts(outcome)}
            self._ledger.add(FINISHED, task.key, **facts)
            self._ended.add(task.key)
        elif not self._stopped:  # else it was us who ended it
            self._ended.add(task.key)
            facts = {"exit_code": outcome.exit_code, "error": outcome.error}
            self._ledger.add(FAILED, task.key, name=task.name, attempts=task.attempt, **facts)
        misses = task.misses()
        self._board.ended(task.name, outcome, misses)
        if (outcome.exit_code or misses) and self._fail_fast and not self._stopped:
            self._stop()
        self._go_on(lane)

    def _go_on(self, lane: Lane) -> None:
        if lane and not self._stopped:
            self._lanes.appendleft(lane)

    def _stop(self) -> None:
        """Begin nothing more, and end what is running."""
        self._stopped = True
        self._lanes.clear()
        self._later.clear()
        self._executor.stop()


def _outcome(future: Future[Outcome]) -> Outcome:
    """What a future holds; an executor that fails is a failure of the job.

    Raises:
        ExecutorLostError: when there is no executor any more.
    """
    error = future.exception()
    if isinstance(error, ExecutorLostError):
        raise error
    if error is None:
        return future.result()
    code, message = explain(error)
    return Outcome(code, message)
