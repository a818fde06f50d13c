"""How a batch tells the outside where it stands; the command line draws it."""

from collections.abc import Sequence

from quantcli.batch.children import Hear, Outcome


class Board:
    """Tells nobody. Called from the driver's thread; what `hearer` returns, from any thread."""

    def planning(self, jobs: int) -> None:
        """So many jobs are to be planned."""

    def planned(self) -> None:
        """One of them is; called from any thread."""

    def begin(self, jobs: int, done: int, seconds: float) -> None:
        """The work begins: so many jobs, some done in earlier runs; a guess of the time left."""

    def started(self, name: str) -> None:
        """A job was handed to the executor."""

    def hearer(self, name: str) -> Hear:
        """What takes the job's {"stage", "done", "total"}."""
        return lambda event: None

    def again(self, name: str, outcome: Outcome, delay: float) -> None:
        """An attempt failed; the next one is due in `delay` seconds."""

    def ended(self, name: str, outcome: Outcome, misses: Sequence[str]) -> None:
        """A job ended for good; `misses` are the limits of its gate that it does not keep to."""

    def finish(self) -> None:
        """All work is over."""
