"""Worker processes: answers, errors, deaths, and nobody left when the caller ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from big_models import build_big
from conftest import DEMO

import quantcli
from quantcli import encoding
from quantcli.errors import BadInputError, ResourceError
from quantcli.workers import QUEUED, Workers


def job(item: object) -> object:
    """What the workers of these tests do."""
    if isinstance(item, BaseException):
        raise item
    if isinstance(item, np.ndarray):
        return item
    if item == "pid":
        return os.getpid()
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def alive(pids: Iterable[int]) -> list[int]:
    """Those that still run, after a moment for them to end."""
    deadline = time.monotonic() + 5
    while True:
        left = [pid for pid in pids if _runs(pid)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_answers_come_from_all_processes() -> None:
    with Workers(job, 3) as workers, ThreadPoolExecutor(3 * QUEUED) as pool:
        items = [np.full(70_000, i) for i in range(50)]
        for item, answer in zip(items, pool.map(workers, items), strict=True):
            assert np.array_equal(item, answer)
        found = set(pool.map(workers, ["pid"] * 50))
        pids = workers.pids()
        assert len(pids) == 4
        assert found <= set(pids[1:])
        assert len(found) > 1
    assert alive(pids) == []


@pytest.mark.parametrize(
    "error", [BadInputError("one line"), MemoryError("much"), ValueError("bug")]
)
def test_errors_come_through_and_the_process_goes_on(error: Exception) -> None:
    with Workers(job, 1) as workers:
        with pytest.raises(type(error), match=str(error)):
            workers(error)
        assert workers("next") == "next"


def test_a_killed_worker_is_one_clear_error() -> None:
    with pytest.raises(ResourceError, match=r"ended by signal SIGKILL.*fewer --threads"):  # noqa: PT012, SIM117
        with Workers(job, 2) as workers:
            workers("ready")
            pids = workers.pids()
            workers("die")
    assert alive(pids) == []


def test_a_job_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ResourceError, match="a worker process is gone"), Workers(job, 1) as workers:
        workers("item")


def test_no_room_for_another_process_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(ResourceError, match="2 worker processes cannot be started: Resource"):
        Workers(job, 2)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use worker processes for the smallest model."""
    monkeypatch.setattr(encoding, "WORTH_PROCESSES", 0)


@pytest.mark.usefixtures("processes")
def test_same_bytes_and_costs_with_any_number_of_processes(tmp_path: Path) -> None:
    first: list[quantcli.Job] = []
    for threads in (1, 2, 5):
        job = quantcli.Job(str(DEMO), ("Q4_K_M", "Q8_0", "F16"), tmp_path, threads=threads)
        report = quantcli.convert(replace(job, split_max_bytes=2 << 20, force=threads > 1))
        facts = [(output.sha256, output.tensors) for output in report.outputs]
        first = first or facts
        assert facts == first


@pytest.mark.usefixtures("processes")
def test_a_value_that_does_not_fit_is_named(tmp_path: Path) -> None:
    source = build_big(tmp_path / "big", 0.01)
    weights = source / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"\xc0\x7f")  # a NaN, at the end of the last tensor
    (tmp_path / "out").mkdir()
    message = r"^big: tensor 'model.layers.0.post_attention_layernorm.weight': weight nan at row 0"
    with pytest.raises(BadInputError, match=message):
        quantcli.convert(quantcli.Job(str(source), ("Q8_0",), tmp_path / "out", threads=2))
    assert list((tmp_path / "out").iterdir()) == []


SCRIPT = """
    import sys
    import quantcli
    from quantcli import encoding
    print("once", flush=True)
    encoding.WORTH_PROCESSES = 0
    quantcli.convert(quantcli.Job(sys.argv[1], ("Q4_0",), threads=2))
"""


def test_a_script_without_main_guard_is_run_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "pickle.py").write_text("raise SystemExit('the wrong module')")
    done = subprocess.run(
        [sys.executable, "-P", "script.py", DEMO], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "once\n", "")


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_workers_end_with_the_caller(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    source = build_big(tmp_path / "big", 0.6)
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "quantcli", "convert", source, "-t", "IQ4_XS", "-o", out]
    caller = subprocess.Popen([*command, "--threads", "2", "-q"], stderr=subprocess.PIPE)
    pids: list[int] = []
    while len(pids) < 3 and caller.poll() is None:
        pids = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if _is(p, caller)]
    caller.send_signal(sent)
    caller.communicate(timeout=10)
    assert caller.returncode == code
    assert len(pids) == 3
    assert alive(pids) == []
    assert bool(list(out.iterdir())) == (sent == signal.SIGKILL)


def _is(cmdline: Path, caller: subprocess.Popen[bytes]) -> bool:
    """Whether a process is one of the caller's workers, or the one that forks them."""
    try:
        group = os.getpgid(int(cmdline.parent.name))
        parent = int(Path(f"/proc/{group}/stat").read_text().rpartition(")")[2].split()[1])
        return parent == caller.pid
    except OSError:
        return False
