"""SIGINT and SIGTERM at any time, two writers of one output: what is left is whole, or nothing."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from crashes import (
    Conversion,
    digests,
    environment,
    gptq,
    in_processes,
    litter,
    rtn,
    smallest,
    split,
    survivors,
)

LONG = 30.0  # seconds; two are promised, of a machine that is not overloaded
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smallest(tmp_path_factory.mktemp("source") / "least")


def interrupted(
    conversion: Conversion, out: Path, sent: signal.Signals, seconds: float
) -> int | None:
    """Convert, and send the signal after that time; the exit code.

    None: Python itself was starting or ending, when signals do what they do in any program.
    """
    out.mkdir()
    mark = str(out)
    running = subprocess.Popen(
        conversion.command(out), env=environment(mark), stderr=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    running.send_signal(sent)
    _, message = running.communicate(timeout=LONG)
    assert survivors(mark) == []
    if running.returncode == -sent:
        return None
    assert running.returncode in (0, CODES[sent]), message
    assert "Traceback" not in message
    assert "Exception ignored" not in message
    return running.returncode


@pytest.mark.slow
@pytest.mark.parametrize("sent", CODES)
@pytest.mark.parametrize("make", [rtn, split, in_processes, gptq])
def test_signals_at_random_times(
    tmp_path: Path, source: Path, make: Callable[[Path], Conversion], sent: signal.Signals
) -> None:
    began = time.monotonic()
    conversion = make(source).expected(tmp_path / "whole")
    seconds = time.monotonic() - began
    chance, ends = random.Random(f"{make.__name__} {sent.name}"), Counter()
    for number in range(20):
        out = tmp_path / str(number)
        ends[interrupted(conversion, out, sent, chance.uniform(0.2, 1.0) * seconds)] += 1
        assert digests(out) in ({}, conversion.digests)
        assert [name for name in litter(out) if not name.endswith(".gguf.resume")] == []
        if make is not gptq or digests(out):
            assert litter(out) == []
    print(make.__name__, sent.name, dict(ends))
    assert ends[CODES[sent]] >= 3


def test_two_writers_of_one_output(tmp_path: Path, source: Path) -> None:
    """The first one, stopped with the output under way, wins; the second exits 9, whatever it has
    been told, and leaves the first one's files alone.
    """
    conversion = split(source).expected(tmp_path / "whole")
    out = tmp_path / "out"
    out.mkdir()
    first = subprocess.Popen(conversion.command(out), env=environment())
    while len(litter(out)) < len(conversion.digests):
        time.sleep(0.001)
        assert first.poll() is None
    first.send_signal(signal.SIGSTOP)
    try:
        for more in ([], ["--force"]):
            done = subprocess.run(
                conversion.command(out, *more), env=environment(), capture_output=True, text=True
            )
            assert done.returncode == 9
            assert f"is being written by process {first.pid};" in done.stderr
            assert done.stderr.count("\n") == 1
            assert len(litter(out)) == len(conversion.digests)
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(LONG) == 0
    assert digests(out) == conversion.digests
    assert litter(out) == []


def _core_types() -> list[str]:
    """Kernels of OpenBLAS that this machine's CPU can run."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    needs = {"Prescott": {"pni"}, "Haswell": {"avx2", "fma"}, "Zen": {"avx2", "fma"}}
    needs["SkylakeX"] = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
    return [name for name, needed in needs.items() if needed <= flags]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="CPU features are not known")
@pytest.mark.parametrize("core", _core_types() if sys.platform == "linux" else [])
def test_rounding_gives_the_same_bytes_with_any_kernels_of_blas(
    tmp_path: Path, source: Path, core: str
) -> None:
    conversion = rtn(source, "-t", "Q4_K_M,Q2_K,IQ4_XS").expected(tmp_path / "whole")
    out = tmp_path / "out"
    out.mkdir()
    chosen = environment() | {"OPENBLAS_CORETYPE": core}
    subprocess.run(conversion.command(out), env=chosen, check=True, capture_output=True)
    assert digests(out) == conversion.digests
