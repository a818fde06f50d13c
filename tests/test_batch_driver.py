"""The driver, its retries and its admission, with executors that only pretend to run."""

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from quantcli.batch import driver as driver_module
from quantcli.batch.board import Board
from quantcli.batch.children import Hear, Outcome
from quantcli.batch.driver import Driver
from quantcli.batch.executor import Executor, ExecutorLostError
from quantcli.batch.ledger import Ledger
from quantcli.batch.local import Room
from quantcli.batch.retries import retry


@dataclass
class Pretence:
    """A task whose attempts end with the given exit codes, one after the other."""

    name: str
    codes: list[int]
    refused: Outcome | None = None
    missed: list[str] = field(default_factory=list)
    outputs: tuple[str, ...] = ()
    cores: int = 1
    attempt: int = 0
    memory_factor: int = 1

    @property
    def key(self) -> str:
        return self.name

    def wanted(self) -> bool:
        return True

    def refusal(self, memory: int) -> Outcome | None:
        return self.refused

    def line(self) -> str:
        return f"{self.name} {self.codes[min(self.attempt, len(self.codes)) - 1]}"

    def memory(self, limit: int) -> int:
        return 100 * self.memory_factor

    def facts(self, outcome: Outcome) -> dict[str, Any]:
        return {"files": []}

    def misses(self) -> list[str]:
        return self.missed


class AtOnce(Executor):
    """Runs nothing; `ran` is what was submitted."""

    cores, memory, slots = 2, 1000, 2

    def __init__(self) -> None:
        self.ran: list[tuple[str, int]] = []
        self.stopped = False

    def submit(self, line: str, memory: int, cores: int, hear: Hear) -> Future[Outcome]:
        name, code = line.split()
        self.ran.append((name, memory))
        future: Future[Outcome] = Future()
        if code == "-1":
            future.set_exception(ExecutorLostError("gone"))
        else:
            future.set_result(Outcome(int(code), f"exit {code}" if code != "0" else None))
        return future

    def stop(self) -> None:
        self.stopped = True

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only by waiting."""
    now = [0.0]

    class Clock:
        monotonic = staticmethod(lambda: now[0])

        @staticmethod
        def sleep(seconds: float) -> None:
            now[0] += seconds

    monkeypatch.setattr(driver_module, "time", Clock)
    return now


Run = Callable[..., tuple[AtOnce, dict[str, dict[str, Any]]]]


@pytest.fixture
def run(tmp_path: Path, clock: list[float]) -> Run:
    def run(*lanes: list[Pretence], **options: bool) -> tuple[AtOnce, dict[str, dict[str, Any]]]:
        executor = AtOnce()
        with Ledger(tmp_path) as ledger:
            Driver(executor, ledger, Board(), **options).run(lanes)
            ends = {task.name: ledger.last(task.name) for lane in lanes for task in lane}
        return executor, ends

    return run


def test_lanes_run_in_order(run: Run) -> None:
    executor, ends = run(
        [Pretence("a1", [0]), Pretence("a2", [3]), Pretence("a3", [0])], [Pretence("b", [0])]
    )
    order = [name for name, _ in executor.ran]
    assert [name for name in order if name[0] == "a"] == ["a1", "a2", "a3"]
    assert {name: end["event"] for name, end in ends.items()} == {
        "a1": "finished",
        "a2": "failed",
        "a3": "finished",
        "b": "finished",
    }


@pytest.mark.parametrize(
    ("codes", "attempts", "event"),
    [
        ([0], 1, "finished"),
        ([6, 6, 6, 0], 4, "finished"),
        ([6], 4, "failed"),
        ([7, 0], 2, "finished"),
        ([7], 2, "failed"),
        ([137, 0], 2, "finished"),
        ([8, 0], 2, "finished"),
        ([8], 2, "failed"),
        ([9, 9, 0], 3, "finished"),
        *[([code, 0], 1, "failed") for code in (1, 2, 3, 4, 5, 130, 139, 143)],
    ],
)
def test_retries_go_by_exit_code(
    run: Run, codes: list[int], attempts: int, event: str, clock: list[float]
) -> None:
    executor, ends = run([Pretence("a", codes)])
    assert len(executor.ran) == attempts
    assert (ends["a"]["event"], ends["a"]["attempts"]) == (event, attempts)
    if codes == [6]:
        assert 0.5 * (15 + 60 + 240) <= clock[0] <= 15 + 60 + 240
    if codes[0] in (7, 137):
        assert executor.ran[1] == ("a", 200), "twice the memory"


def test_backoff_has_jitter() -> None:
    random.seed(1)
    waits = {retry(6, 1).delay for _ in range(20)}  # type: ignore[union-attr]
    assert len(waits) == 20


def test_a_refused_task_is_not_run(run: Run) -> None:
    executor, ends = run([Pretence("a", [0], refused=Outcome(4, "unknown")), Pretence("b", [0])])
    assert executor.ran == [("b", 100)]
    assert (ends["a"]["exit_code"], ends["a"]["error"]) == (4, "unknown")


@pytest.mark.parametrize("how", ["code", "gate"])
def test_fail_fast_begins_nothing_more(run: Run, how: str) -> None:
    bad = Pretence("a", [3]) if how == "code" else Pretence("a", [0], missed=["too far"])
    later = [Pretence(name, [0]) for name in "cdefg"]
    executor, ends = run([bad, Pretence("b", [0])], later, fail_fast=True)
    assert executor.stopped
    assert ends["b"] == ends["g"] == {}


def test_a_lost_executor_ends_the_batch(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger, pytest.raises(ExecutorLostError):
        Driver(AtOnce(), ledger, Board()).run([[Pretence("a", [-1])]])


def test_room_admits_while_cores_and_memory_fit() -> None:
    room = Room(cores=4, memory=100)
    most: list[tuple[int, int]] = []
    inside: dict[int, tuple[int, int]] = {}
    lock = threading.Lock()

    def work(number: int) -> None:
        draw = random.Random(number)
        cores, memory = draw.randint(1, 6), draw.randint(1, 130)
        with room.taken(cores, memory):
            with lock:
                inside[number] = (min(cores, 4), min(memory, 100))
                most.append(tuple(map(sum, zip(*inside.values(), strict=True))))  # type: ignore[arg-type]
            time.sleep(0.001)
            with lock:
                del inside[number]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 60
    assert max(cores for cores, _ in most) == 4
    assert max(memory for _, memory in most) <= 100


def test_a_large_job_is_not_passed_by_forever() -> None:
    room = Room(cores=2, memory=100)
    order: list[str] = []

    def work(name: str, memory: int) -> None:
        with room.taken(1, memory):
            order.append(name)
            time.sleep(0.02)

    with room.taken(1, 60):
        large = threading.Thread(target=work, args=("large", 100))
        large.start()
        while not room._queue:
            time.sleep(0.001)
        small = threading.Thread(target=work, args=("small", 10))
        small.start()
        time.sleep(0.05)
        assert order == [], "small would fit, but large was first"
    large.join()
    small.join()
    assert order == ["large", "small"]
