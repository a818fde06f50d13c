"""Progress on stderr: a bar with rate and time left on a terminal, sparse plain lines elsewhere."""

import sys
import time

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from quantcli.progress import Progress as ProgressProtocol
from quantcli.progress import Silent

LINE_EVERY_SECONDS = 30.0
LINE_AT_MOST_EVERY_SECONDS = 1.0
LINE_EVERY_FRACTION = 0.1


class Bar:
    """A rich progress bar."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task: TaskID | None = None

    def start(self, description: str, total_bytes: int) -> None:
        """Open a new bar."""
        self._task = self._bars.add_task(description, total=total_bytes)
        self._bars.start()

    def advance(self, n: int) -> None:
        """Move the bar by n bytes."""
        if self._task is not None:
            self._bars.advance(self._task, n)

    def finish(self) -> None:
        """Remove the bar."""
        self._bars.stop()
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = None


class Lines:
    """One plain line per 10 % or 30 s, for logs and pipes."""

    def start(self, description: str, total_bytes: int) -> None:
        """Begin counting from zero."""
        self._description, self._total, self._done = description, max(total_bytes, 1), 0
        self._began = self._said_at = time.monotonic()
        self._said_fraction = 0.0

    def advance(self, n: int) -> None:
        """Count n bytes; print when there is news."""
        self._done += n
        fraction, now = self._done / self._total, time.monotonic()
        quiet_for = now - self._said_at
        news = fraction - self._said_fraction >= LINE_EVERY_FRACTION and fraction < 1.0
        if (news and quiet_for >= LINE_AT_MOST_EVERY_SECONDS) or quiet_for >= LINE_EVERY_SECONDS:
            self._said_fraction, self._said_at = fraction, now
            self._print(fraction, now)

    def finish(self) -> None:
        """Print the last line."""
        self._print(min(self._done / self._total, 1.0), time.monotonic())

    def _print(self, fraction: float, now: float) -> None:
        seconds = max(now - self._began, 1e-9)
        rate = self._done / seconds
        left = max(self._total - self._done, 0) / rate if rate else 0.0
        print(
            f"{self._description}: {fraction:4.0%} of {decimal(self._total)}, "
            f"{decimal(int(rate))}/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def for_terminal(quiet: bool) -> ProgressProtocol:
    """The progress that suits stderr: none when quiet, bars on a terminal, lines elsewhere."""
    if quiet:
        return Silent()
    return Bar() if Console(stderr=True).is_terminal else Lines()
