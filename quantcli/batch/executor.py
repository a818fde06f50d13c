"""What every executor offers: run an order somewhere, in a child process, and tell how it ended."""

from abc import ABC, abstractmethod
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from quantcli.batch.children import Hear, Outcome
from quantcli.errors import NetworkError


class ExecutorLostError(NetworkError):
    """Nothing more can be run; what was running may have ended or not."""


class Executor(ABC):
    """A context manager; whatever leaves the block ends what is running.

    cores, memory (bytes): what one job can have at most; slots: how many to submit at once.
    """

    cores: int
    memory: int
    slots: int

    @abstractmethod
    def submit(self, line: str, memory: int, cores: int, hear: Hear) -> Future[Outcome]:
        """Run the order in `line`; `hear` gets what the child says meanwhile, from any thread."""

    @abstractmethod
    def stop(self) -> None:
        """Ask what is running to clean up and end, as far as that can be reached."""

    @abstractmethod
    def close(self) -> None:
        """Wait until all has ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        self.close()
