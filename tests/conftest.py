"""What all tests share: the embedded checkpoint and the command line as a user calls it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def assert_one_line_error(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The exit code, one `error:` line that holds every word, no traceback, empty stdout."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


@dataclass(frozen=True)
class Called:
    """What a command run in this process did; `left` are the names in its folder afterwards."""

    code: int
    stdout: str
    stderr: str
    left: list[str]

    def failed_with(self, code: int, *words: str) -> bool:
        """Exit code, exactly one error line with all words, nothing printed or left behind."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert (self.code, self.stdout, self.left) == (code, "", []), self
        assert len(lines) == 1, self.stderr
        assert lines[0].isprintable()
        assert [word for word in words if word not in lines[0]] == [], lines[0]
        return True


class Call:
    """Runs quantcli commands in this process, in an empty folder: quicker than `cli`."""

    def __init__(self, work: Path, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]):
        self.work, self._patch, self._capture = work, patch, capture

    def __call__(self, *arguments: str | Path) -> Called:
        from quantcli.cli import main

        self._patch.chdir(self.work)
        self._patch.setattr(sys, "argv", ["quantcli", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        out = self._capture.readouterr()
        left = sorted(path.name for path in self.work.iterdir())
        return Called(int(stop.value.code or 0), out.out, out.err, left)


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Run a command in this process."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    return Call(work, monkeypatch, capsys)
