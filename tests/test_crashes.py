"""Killed at any instant: nothing partial at a final name, and the next run gives the same bytes."""

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from crashes import (
    CALLS,
    Conversion,
    assert_next_run_finishes,
    assert_nothing_partial,
    environment,
    gptq,
    in_processes,
    killed_at,
    rtn,
    smallest,
    split,
    survivors,
    sweep,
)

Made = Callable[[Path], Conversion]

WITH_STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smallest(tmp_path_factory.mktemp("source") / "least")


@WITH_STRACE
@pytest.mark.parametrize(("call", "number"), [("pwrite64", 5), ("link", 3), ("unlink", 2)])
def test_killed_at_a_system_call(tmp_path: Path, source: Path, call: str, number: int) -> None:
    conversion = split(source).expected(tmp_path / "whole")
    assert killed_at(call, number, conversion, tmp_path / "out") == f"{call} .part"
    assert_nothing_partial(conversion, tmp_path / "out")
    assert_next_run_finishes(conversion, tmp_path / "out")


# How many calls there are at least, so that a sweep that strikes nothing is noticed.
@pytest.mark.slow
@WITH_STRACE
@pytest.mark.parametrize(
    ("make", "calls", "least"),
    [
        (rtn, CALLS, {"pwrite64 .part": 15, "fsync .part": 1, "link .part": 1, "unlink .part": 1}),
        (split, CALLS, {"pwrite64 .part": 30, "link .part": 5, "unlink .part": 5}),
        (in_processes, (*CALLS, "sendto"), {"pwrite64 .part": 8, "sendto socket:": 2}),
        (gptq, CALLS, {"pwrite64 .part": 15, "write .resume": 20, "rename .resume": 3}),
    ],
)
def test_killed_at_every_system_call(
    tmp_path: Path, source: Path, make: Made, calls: tuple[str, ...], least: dict[str, int]
) -> None:
    struck = sweep(make(source).expected(tmp_path / "whole"), tmp_path, calls)
    print(make.__name__, dict(struck))
    assert Counter(least) <= struck


@pytest.mark.slow
@pytest.mark.parametrize("make", [rtn, split, in_processes, gptq])
def test_killed_at_random_times(tmp_path: Path, source: Path, make: Made) -> None:
    """Fifty times each, again and again in one folder: a run may die on what another one left."""
    began = time.monotonic()
    conversion = make(source).expected(tmp_path / "whole")
    seconds = time.monotonic() - began
    chance, ends = random.Random(make.__name__), Counter()
    for number in range(50):
        out = tmp_path / f"out-{number // 5}"
        out.mkdir(exist_ok=True)
        mark = f"{tmp_path}-{number}"
        running = subprocess.Popen(
            conversion.command(out, "--resume"), env=environment(mark), stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(0.2, 1.0) * seconds)  # before, Python starts
        running.send_signal(signal.SIGKILL)
        ends[running.wait()] += 1
        assert survivors(mark) == []
        assert_nothing_partial(conversion, out)
        if running.returncode in (0, 9):
            shutil.rmtree(out)
        elif number % 5 == 4:
            assert_next_run_finishes(conversion, out)
    print(make.__name__, dict(ends))
    assert ends.keys() <= {-signal.SIGKILL, 0, 9}
    assert ends[-signal.SIGKILL] >= 25
