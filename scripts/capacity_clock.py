"""What a simulation needs: processes in the order of time, and bytes per second that they share."""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Generator

Then = Callable[[], None]
Wait = Callable[[Then], None]  # what a process yields: it goes on when the argument is called
Process = Generator[Wait, None, None]


class Clock:
    """Processes and what they wait for, in the order of time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Then]] = []
        self._count = 0

    def at(self, when: float, then: Then) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, then))

    def sleep(self, seconds: float) -> Wait:
        return lambda then: self.at(self.now + seconds, then)

    def go(self, process: Process) -> None:
        """Let a process run until it waits."""
        wait = next(process, None)
        if wait is not None:
            wait(lambda: self.go(process))

    def run(self) -> None:
        while self._events:
            self.now, _, then = heapq.heappop(self._events)
            then()


class Pipe:
    """Bytes per second that workers share evenly, each with a limit and a queue of its own."""

    def __init__(self, clock: Clock, total: float, each: float) -> None:
        self._clock, self._total, self._each = clock, total, each
        self._queues: dict[int, deque[tuple[float, Then]]] = defaultdict(deque)
        self._ends: list[tuple[float, int]] = []  # in bytes that a worker has got by then
        self._got = self._since = 0.0
        self._plans = 0
        self.moved = 0.0

    def move(self, worker: int, size: float) -> Wait:
        def wait(then: Then) -> None:
            self._queues[worker].append((size, then))
            if len(self._queues[worker]) == 1:
                self._advance()
                self._begin(worker)

        return wait

    def _speed(self) -> float:
        return min(self._each, self._total / len(self._ends))

    def _advance(self) -> None:
        if self._ends:
            self._got += (self._clock.now - self._since) * self._speed()
        self._since = self._clock.now

    def _begin(self, worker: int) -> None:
        heapq.heappush(self._ends, (self._got + self._queues[worker][0][0], worker))
        self._look_ahead()

    def _look_ahead(self) -> None:
        self._plans += 1
        if self._ends:
            plan, wait = self._plans, max(0.0, self._ends[0][0] - self._got) / self._speed()
            self._clock.at(self._clock.now + wait, lambda: self._end(plan))

    def _end(self, plan: int) -> None:
        if plan != self._plans:  # another transfer has begun or ended since
            return
        self._advance()
        self._got, worker = heapq.heappop(self._ends)
        size, then = self._queues[worker].popleft()
        self.moved += size
        if self._queues[worker]:
            self._begin(worker)
        self._look_ahead()
        then()
