"""How the BLAS is set up."""

from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from quantcli import blas

AVX512 = "flags : fpu avx2 avx512f avx512dq avx512cd avx512bw avx512vl\n"


@pytest.mark.parametrize(
    ("flags", "environment", "expected"),
    [
        (AVX512, {}, "SKYLAKEX"),
        (AVX512, {"OPENBLAS_CORETYPE": "Zen"}, "Zen"),
        (AVX512.replace(" avx512bw", ""), {}, None),
        ("model name : nothing known\n", {}, None),
    ],
)
def test_wide_kernels(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    environment: dict[str, str],
    expected: str | None,
) -> None:
    monkeypatch.setattr(blas.platform, "machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text("processor : 0\n" + flags)
    blas.prefer_wide_kernels(environment, tmp_path / "cpuinfo")
    assert environment.get("OPENBLAS_CORETYPE") == expected


def test_wide_kernels_need_x86_and_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment: dict[str, str] = {}
    blas.prefer_wide_kernels(environment, tmp_path / "missing")
    monkeypatch.setattr(blas.platform, "machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text(AVX512)
    blas.prefer_wide_kernels(environment, tmp_path / "cpuinfo")
    assert environment == {}


def test_one_thread_inside_and_as_before_outside() -> None:
    def threads() -> list[int]:
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    assert np.ones((2, 2)).sum() == 4  # numpy, and with it its BLAS, is loaded
    with threadpool_limits(2, "blas"):
        before = threads()
        with blas.one_thread():
            assert set(threads()) == {1}
        assert threads() == before
