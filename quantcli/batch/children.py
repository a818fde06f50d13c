"""Child processes of quantcli that do what orders say, and what became of them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from quantcli.errors import ResourceError

COMMAND = (sys.executable, "-P", "-m", "quantcli", "run-job")
PATIENCE = 10.0  # seconds for a child to clean up
MOST_STDERR = 64 << 10

Hear = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How an order ended: `result` if `exit_code` is 0, else `error`, one line."""

    exit_code: int
    error: str | None = None
    result: dict[str, Any] = field(default_factory=dict)


def run_child(
    line: str,
    hear: Hear = lambda event: None,
    family: "Family | None" = None,
    environment: dict[str, str] | None = None,
) -> Outcome:
    """Give a line of JSON to a new child process and wait; `hear` gets what it says meanwhile."""
    with _child(environment or {}) as (child, said), (family or Family()).member(child):
        answer: dict[str, Any] = {}
        with suppress(BrokenPipeError):  # its exit code tells why
            _give(child, line)
        for event in _events(child):
            if "result" in event:
                answer = event
            else:
                hear(event)
        code = child.wait()
        return _outcome(code, answer, said())


class Planner:
    """One child process that answers any number of orders to plan; a dead one is replaced."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._environment = environment or {}
        self._stack: Any = None

    def ask(self, line: str) -> Outcome:
        """The answer to one order."""
        if self._stack is None:
            self._stack = _child(self._environment)
            self._child, self._said = self._stack.__enter__()
            self._answers = _events(self._child)
        with suppress(BrokenPipeError):
            _give(self._child, line)
        answer = next(self._answers, None)
        if answer is None:
            outcome = _outcome(self._child.wait(), {}, self._said())
            self.close()
            return outcome
        if "result" in answer:
            return Outcome(0, None, answer["result"])
        return Outcome(int(answer["exit_code"]), str(answer["error"]))

    def close(self) -> None:
        """End the process."""
        if self._stack is not None:
            self._stack.__exit__(None, None, None)
            self._stack = None


class Family:
    """The children at work, to be ended together."""

    def __init__(self) -> None:
        self._children: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._ended = False

    @contextmanager
    def member(self, child: subprocess.Popen[str]) -> Iterator[None]:
        """Count the child as one of the family inside the block."""
        with self._lock:
            self._children.add(child)
            if self._ended:
                child.terminate()
        try:
            yield
        finally:
            with self._lock:
                self._children.discard(child)

    def end(self) -> None:
        """Ask every child to clean up and go, now and in the future."""
        with self._lock:
            self._ended = True
            for child in self._children:
                child.terminate()


@contextmanager
def _child(
    environment: dict[str, str],
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """A child and what it has written on stderr; whatever leaves the block ends it."""
    with tempfile.TemporaryFile() as errors:

        def said() -> str:
            size = errors.seek(0, os.SEEK_END)
            errors.seek(max(0, size - MOST_STDERR))
            return errors.read().decode(errors="replace")

        child = _start(errors, os.environ | environment)
        try:
            yield child, said
        finally:
            for stream in (child.stdin, child.stdout):  # their end tells the child to clean up
                with suppress(OSError):
                    stream.close()  # type: ignore[union-attr]
            try:
                child.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _start(errors: Any, environment: dict[str, str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env=environment,
            process_group=0,  # a terminal's Ctrl-C is for us: we end them
        )
    except OSError as error:
        raise ResourceError(f"a child process cannot be started: {error.strerror}") from None


def _give(child: subprocess.Popen[str], line: str) -> None:
    if child.stdin is not None:
        child.stdin.write(line)
        child.stdin.flush()


def _events(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    for line in child.stdout or ():
        with suppress(ValueError):  # a child that dies may leave half a line
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def _outcome(code: int, answer: dict[str, Any], said: str) -> Outcome:
    """What the exit code and the last words mean; a signal's number is told as shells do."""
    if code == 0 and "result" in answer:
        return Outcome(0, None, answer["result"])
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if lines:
        return Outcome(code if code > 0 else 1, lines[-1].removeprefix("error: "))
    if code < 0:
        return Outcome(128 - code, f"the child process was ended by {signal.Signals(-code).name}")
    if code > 128:
        return Outcome(code, "the child process was interrupted")
    last = " ".join(said.split())[-200:]
    return Outcome(code or 1, f"the child process ended without an answer {last}".rstrip())
