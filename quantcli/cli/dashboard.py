"""A batch while it runs: a live dashboard on a terminal, plain lines elsewhere; all on stderr."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from quantcli.batch.board import Board
from quantcli.batch.children import Hear, Outcome
from quantcli.report.words import duration

NAME_WIDTH = 34
OTHER_LINES = 4  # of a terminal: the bar of the batch, what was printed above it


class Dashboard(Board):
    """One bar for the whole batch, one for each job at work, with stage, rate and time left.

    There are bars for as many jobs as have room on the terminal: a cluster runs thousands.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[facts]}", justify="right"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._all: TaskID | None = None
        self._jobs: dict[str, TaskID] = {}
        self._hidden: dict[str, None] = {}  # in the order in which they get a bar
        self._failed = 0

    def planning(self, jobs: int) -> None:
        """A bar for planning."""
        if jobs:
            self._all = self._bars.add_task("Planning", total=jobs, facts="")
            self._bars.start()

    def planned(self) -> None:
        """One more."""
        if self._all is not None:
            self._bars.advance(self._all)

    def begin(self, jobs: int, done: int, seconds: float) -> None:
        """The bar of the whole batch."""
        if self._all is not None:
            self._bars.remove_task(self._all)
        self._all = self._bars.add_task("Batch", total=jobs, completed=done, facts="")
        self._count()
        self._bars.start()

    def started(self, name: str) -> None:
        """A bar for the job, if there is room."""
        if len(self._jobs) < max(1, self._console.height - OTHER_LINES):
            self._show(name)
        else:
            self._hidden[name] = None

    def hearer(self, name: str) -> Hear:
        """Moves the bar of the job."""
        stage, began = "", 0.0

        def hear(event: dict[str, Any]) -> None:
            nonlocal stage, began
            job = self._jobs.get(name)
            if "stage" not in event or job is None:
                return
            if event["stage"] != stage:
                stage, began = event["stage"], time.monotonic()
                self._bars.reset(job, total=event["total"])
            rate = event["done"] / max(time.monotonic() - began, 0.1)
            facts = f"{escape(_fitted(stage, 20))} {decimal(int(rate))}/s"
            self._bars.update(job, completed=event["done"], facts=facts)

        return hear

    def again(self, name: str, outcome: Outcome, delay: float) -> None:
        """Say it above the bars."""
        self._remove(name)
        self._print(f"[yellow]again in {delay:.0f} s[/]  {escape(_cause(name, outcome))}")

    def ended(self, name: str, outcome: Outcome, misses: Sequence[str]) -> None:
        """Count it; failures are said above the bars."""
        self._remove(name)
        if outcome.exit_code or misses:
            self._failed += 1
            self._print(f"[red]failed[/]  {escape(_cause(name, outcome, misses))}")
        if self._all is not None:
            self._bars.advance(self._all)
        self._count()

    def finish(self) -> None:
        """Remove all bars."""
        self._bars.stop()

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _show(self, name: str) -> None:
        label = escape(_fitted(name))
        self._jobs[name] = self._bars.add_task(f"  {label}", total=None, facts="waiting")

    def _remove(self, name: str) -> None:
        self._hidden.pop(name, None)
        if name not in self._jobs:
            return
        self._bars.remove_task(self._jobs.pop(name))
        if self._hidden:
            first = next(iter(self._hidden))
            del self._hidden[first]
            self._show(first)

    def _count(self) -> None:
        if self._all is not None:
            task = self._bars.tasks[self._bars.task_ids.index(self._all)]
            failed = f", [red]{self._failed} failed[/]" if self._failed else ""
            facts = f"{task.completed:.0f} of {task.total:.0f} jobs{failed}"
            self._bars.update(self._all, facts=facts)


class PlainLines(Board):
    """A line when a job ends or is tried again, for logs and pipes."""

    def __init__(self) -> None:
        self._done = self._jobs = 0
        self._began: dict[str, float] = {}

    def planning(self, jobs: int) -> None:
        """How many are to be planned."""
        if jobs:
            _say(f"planning {jobs} jobs")

    def begin(self, jobs: int, done: int, seconds: float) -> None:
        """How much there is to do."""
        self._jobs, self._done = jobs, done
        _say(f"{jobs - done} jobs to run, {done} finished before; about {duration(seconds)}")

    def started(self, name: str) -> None:
        """Begin its time."""
        self._began[name] = time.monotonic()

    def again(self, name: str, outcome: Outcome, delay: float) -> None:
        """Why, and when."""
        _say(f"again in {delay:.0f} s: {_cause(name, outcome)}")

    def ended(self, name: str, outcome: Outcome, misses: Sequence[str]) -> None:
        """How, and how far the batch is."""
        self._done += 1
        seconds = time.monotonic() - self._began.get(name, time.monotonic())
        place = f"[{self._done}/{self._jobs}]"
        if outcome.exit_code or misses:
            _say(f"{place} failed: {_cause(name, outcome, misses)}")
        else:
            _say(f"{place} done: {name}, {duration(seconds)}")


def board_for(quiet: bool) -> Board:
    """The board that suits stderr: none when quiet, live on a terminal, lines elsewhere."""
    if quiet:
        return Board()
    console = Console(stderr=True)
    return Dashboard(console) if console.is_terminal else PlainLines()


def _cause(name: str, outcome: Outcome, misses: Sequence[str] = ()) -> str:
    if misses and not outcome.exit_code:
        return f"{name}: {'; '.join(misses)}"
    return f"{name}: {outcome.error} (exit {outcome.exit_code})"


def _fitted(text: str, width: int = NAME_WIDTH) -> str:
    return text if len(text) <= width else "…" + text[1 - width :]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
