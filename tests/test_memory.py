"""Private memory: below 600 MB whatever the model's size, and what planning says of more."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from big_models import build_big

from quantcli.planning import Job, make_plan

LIMIT = 600 << 20


def peak(*arguments: str | Path) -> int:
    """The private memory that a process of its own reports, with its workers."""
    done = subprocess.run(
        [sys.executable, "-m", "quantcli", *arguments, "--json"],
        capture_output=True,
        check=True,
        timeout=600,
    )
    return int(json.loads(done.stdout)["peak_memory_bytes"])


@pytest.mark.slow
@pytest.mark.parametrize("gigabytes", [1, 4])
def test_peak_memory_is_bounded(tmp_path: Path, gigabytes: int) -> None:
    """RLIMIT_DATA counts private writable memory: the run dies if it wants more."""
    source = build_big(tmp_path / "big", gigabytes)
    subprocess.run(
        [sys.executable, "-m", "quantcli", "convert", source, "-t", "Q4_K_M", "-o", tmp_path],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
        check=True,
        timeout=1200,
    )


@pytest.mark.slow
def test_sixteen_processes_together_need_no_more_than_planned(tmp_path: Path) -> None:
    source = build_big(tmp_path / "big", 1)
    job = Job(str(source), ("Q4_K_M",), tmp_path, threads=16)
    found = peak("convert", source, "-t", "Q4_K_M", "--threads", "16", "-o", tmp_path)
    assert found < make_plan(job).peak_memory_bytes < LIMIT


@pytest.mark.slow
def test_calibration_needs_no_more_than_planned(tmp_path: Path) -> None:
    """The slack is for what threads reserve without using it: stacks, arenas, BLAS's buffers."""
    source = build_big(tmp_path / "big", 0.5)
    job = Job(str(source), ("Q4_0",), tmp_path, calibrate="builtin", calibration_tokens=2048)
    planned = make_plan(replace(job, threads=1)).peak_memory_bytes
    assert planned < LIMIT
    limit = planned + (128 << 20)
    arguments = ["convert", source, "-t", "Q4_0", "-o", tmp_path, "--threads", "1"]
    auto = ["--imatrix", "auto", "--calibration-tokens", "2048"]
    subprocess.run(
        [sys.executable, "-m", "quantcli", *arguments, *auto],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
        check=True,
        timeout=1200,
    )


@pytest.mark.slow
def test_gptq_needs_no_more_than_planned(tmp_path: Path, demo: Path) -> None:
    job = Job(str(demo), ("Q4_0", "Q6_K"), tmp_path, method="awq+gptq", calibration_tokens=8192)
    arguments = ["convert", demo, "-t", "Q4_0,Q6_K", "--method", "awq+gptq", "-o", tmp_path]
    found = peak(*arguments, "--calibration-tokens", "8192")
    assert 100 << 20 < found < make_plan(job).peak_memory_bytes
