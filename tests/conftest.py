"""What all tests share: the embedded checkpoint and the command line as a user calls it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DEMO = Path(__file__).parent / "models" / "demo"

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def demo() -> Path:
    """The small trained Llama checkpoint of this repository."""
    return DEMO


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `python -m quantcli ARGS` in an empty folder, offline; returns the finished process."""
    work = tmp_path / "work"
    work.mkdir()

    def run(*args: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "quantcli", *map(str, args)],
            cwd=work,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "80"} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    run.work = work  # type: ignore[attr-defined]
    return run


def assert_one_line_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The exit code, one `error:` line that holds every word, no traceback, empty stdout."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]
