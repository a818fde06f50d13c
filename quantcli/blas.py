"""How the BLAS behind numpy is set up: its kernels at the start of a process, its threads later."""

import os
import platform
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

# What OpenBLAS's SKYLAKEX kernels are compiled for.
_FEATURES = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}


def prefer_wide_kernels(
    environment: MutableMapping[str, str] = os.environ, cpuinfo: Path = Path("/proc/cpuinfo")
) -> None:
    """Let OpenBLAS use AVX-512 where the CPU has it; to be called before numpy is imported.

    Some OpenBLAS builds take newer AMD CPUs for Haswell and run at half speed. The user's own
    OPENBLAS_CORETYPE stays.
    """
    if "OPENBLAS_CORETYPE" in environment or platform.machine() not in ("x86_64", "AMD64"):
        return
    try:
        with cpuinfo.open(encoding="ascii", errors="replace") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:  # not Linux
        return
    if set(flags.split()) >= _FEATURES:
        environment["OPENBLAS_CORETYPE"] = "SKYLAKEX"


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS computes with one thread inside: its results depend on its number of threads.

    The setting is the process's; we split work into fixed pieces over threads of our own.
    """
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
