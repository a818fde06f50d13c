"""Private memory stays below 600 MB and does not grow with the model."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from big_models import build_big

LIMIT = 600 << 20


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
