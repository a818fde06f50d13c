"""The local executor: child processes on this machine, as many as cores and memory admit."""

import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from quantcli.batch.children import Family, Hear, Outcome, run_child
from quantcli.batch.executor import Executor

SHARE_OF_MEMORY = 0.85  # of the machine's: the rest is for the page cache and everyone else


def memory_limit() -> int:
    """Bytes that jobs may use together: most of the machine's, or of what our cgroup may use."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return int(SHARE_OF_MEMORY * total)


class Room:
    """Cores and memory, given out in the order of asking: a large job is not passed by forever."""

    def __init__(self, cores: int, memory: int) -> None:
        self.cores, self.memory = cores, memory
        self._free = [cores, memory]
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, cores: int, memory: int) -> Iterator[None]:
        """Wait for room, and hold it inside the block; nobody gets more than there is."""
        wanted = (min(cores, self.cores), min(memory, self.memory))
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            self._changed.wait_for(lambda: self._queue[0] is ticket and self._fits(wanted))
            self._queue.popleft()
            self._give(wanted, -1)
        try:
            yield
        finally:
            with self._changed:
                self._give(wanted, 1)

    def _fits(self, wanted: tuple[int, int]) -> bool:
        return all(free >= size for free, size in zip(self._free, wanted, strict=True))

    def _give(self, amounts: tuple[int, int], sign: int) -> None:
        self._free = [free + sign * n for free, n in zip(self._free, amounts, strict=True)]
        self._changed.notify_all()


class Local(Executor):
    """Child processes on this machine."""

    def __init__(self, cores: int, memory: int, environment: dict[str, str]) -> None:
        self.cores, self.memory, self.slots = cores, memory, cores
        self._room, self._environment = Room(cores, memory), environment
        self._family = Family()
        self._pool = ThreadPoolExecutor(cores)

    def submit(self, line: str, memory: int, cores: int, hear: Hear) -> Future[Outcome]:
        """Run an order in a child process as soon as there is room for it."""
        return self._pool.submit(self._run, line, memory, cores, hear)

    def _run(self, line: str, memory: int, cores: int, hear: Hear) -> Outcome:
        with self._room.taken(cores, memory):
            return run_child(line, hear, self._family, self._environment)

    def stop(self) -> None:
        """Ask all children to clean up and go."""
        self._family.end()

    def close(self) -> None:
        """Wait for them."""
        self._pool.shutdown(cancel_futures=True)
