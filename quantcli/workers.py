"""A pool of processes that all do one job: numpy calls of our size wait for each other in threads.

One fresh interpreter imports what the job needs and forks the workers, which share its memory.
Unlike multiprocessing's it never imports the caller's main module, and it is single-threaded, so
forking is safe whatever the caller is doing. Workers read items from sockets and end when these
close: with the caller, however that ends.
"""

import gc
import os
import pickle
import queue
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from quantcli.errors import ResourceError

QUEUED = 2  # items that a process has at the same time: in work and waiting

Item = TypeVar("Item")
Result = TypeVar("Result")

_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from quantcli.workers import serve; serve()"
)
_ONE_BLAS_THREAD = dict.fromkeys(
    ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)
# glibc gives the memory of an item back to the system, whose pages then cost more than the work.
_KEEP_FREED_MEMORY = dict.fromkeys(
    ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(32 << 20)
)


class Workers(Generic[Item, Result]):
    """`count` processes, as a context manager; calling it is calling `job` in one of them.

    `job` is pickled once, items and results each time. Called from `count` * QUEUED threads every
    process has its next item at hand when it is done with one.
    """

    def __init__(self, job: Callable[[Item], Result], count: int) -> None:
        """Start them, without waiting until they are ready."""
        pairs = [socket.socketpair() for _ in range(count * QUEUED)]
        theirs = [their.fileno() for _, their in pairs]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START, str(count), *map(str, theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=theirs,
            process_group=0,  # a terminal's Ctrl-C is for us: we end them
            env=os.environ | _ONE_BLAS_THREAD | _KEEP_FREED_MEMORY,
        )
        self._streams = [our.makefile("rwb") for our, _ in pairs]
        for pair in pairs:
            for end in pair:
                end.close()
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for stream in self._streams:
            self._idle.put(stream)
        self._send_job(pickle.dumps(sys.path) + pickle.dumps(job))

    def _send_job(self, data: bytes) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:  # calls will tell
            stdin.write(data)

    def __call__(self, item: Item) -> Result:
        """job(item), or what it raises; ResourceError if the process dies."""
        stream = self._idle.get()
        try:
            pickle.dump(item, stream)
            stream.flush()
            done, result = pickle.load(stream)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise ResourceError(self._obituary()) from None
        finally:
            self._idle.put(stream)
        if not done:
            raise result
        return result

    def _obituary(self) -> str:
        try:
            how = f"ended by signal {signal.Signals(self._process.wait(1)).name}"
        except (subprocess.TimeoutExpired, ValueError):
            how = "gone"
        return f"a worker process is {how}, likely for want of memory; use fewer --threads"

    def pids(self) -> list[int]:
        """All processes that were started, as far as Linux tells."""
        parent = self._process.pid
        try:
            children = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except OSError:
            return [parent]
        return [parent, *map(int, children.split())]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for stream in self._streams:
            with suppress(OSError):
                stream.close()
        self._process.wait()


def serve() -> None:
    """In the fresh interpreter: fork the workers, wait for all, report a death."""
    count, *sockets = map(int, sys.argv[1:])
    job = pickle.load(sys.stdin.buffer)
    gc.collect()
    gc.freeze()  # later collections need not touch, and so copy, the shared memory
    for worker in range(count):
        if os.fork() == 0:
            mine = sockets[worker::count]
            for other in set(sockets).difference(mine):
                os.close(other)
            with suppress(OSError, EOFError):  # the caller is gone
                _work(job, mine)
            os._exit(0)
    for fd in sockets:
        os.close(fd)
    for _ in range(count):
        _, status = os.wait()
        if os.WIFSIGNALED(status):
            os._exit(os.WTERMSIG(status))


def _work(job: Callable[[Any], Any], sockets: list[int]) -> None:
    streams = {fd: socket.socket(fileno=fd).makefile("rwb") for fd in sockets}
    while True:
        for fd in select.select(sockets, [], [])[0]:
            stream = streams[fd]
            item = pickle.load(stream)
            try:
                reply = True, job(item)
            except Exception as error:  # raised again in the caller
                reply = False, error
            pickle.dump(reply, stream)
            stream.flush()
