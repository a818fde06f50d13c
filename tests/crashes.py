"""Conversions in processes of their own, killed by strace at a chosen system call or by hand.

Outputs go to an empty folder each; what may be found there after a death, after an interruption
and after the next run is said once, here.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from tiny_models import build

# Calls that put something on the disk, or a name into a folder.
CALLS = (
    "pwrite64", "write", "fsync", "fdatasync", "link", "linkat", "rename", "renameat",
    "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir",
)  # fmt: skip
MOST = 400  # calls of one kind in a conversion: far more than there are

# The command line, but with worker processes for the smallest model.
WITH_PROCESSES = (
    "from quantcli import encoding; from quantcli.cli import main; "
    "encoding.WORTH_PROCESSES = 0; main()"
)
_MARK = "QUANTCLI_CRASH_TEST"  # in the environment: tells our processes, and theirs, from others
_DEATH = re.compile(r"^(\d+) +\+\+\+ killed by SIGKILL")
_CALL = re.compile(r"^(\d+) +(\w+)\((.*)")


@dataclass(frozen=True)
class Conversion:
    """`quantcli convert` with these arguments; `digests` of a run left alone, by file name."""

    arguments: tuple[str, ...]
    program: tuple[str, ...] = ("-m", "quantcli")
    digests: dict[str, str] = field(default_factory=dict)

    def command(self, out: Path, *more: str) -> list[str]:
        """The whole command line."""
        return [sys.executable, *self.program, "convert", *self.arguments, "-o", str(out), *more]

    def expected(self, out: Path) -> "Conversion":
        """The same, having learnt in the folder `out` what it writes."""
        out.mkdir()
        subprocess.run(self.command(out), env=environment(), check=True, capture_output=True)
        return Conversion(self.arguments, self.program, digests(out))


def smallest(folder: Path) -> Path:
    """A checkpoint of one block and 14 tensors whose outputs are a few hundred KB."""
    return build(folder, "llama", "odd", num_hidden_layers=1)


def rtn(source: Path, *more: str) -> Conversion:
    """Rounding to nearest, to one file unless `more` says otherwise."""
    return Conversion((str(source), "--threads", "1", "--quiet", *(more or ("-t", "Q4_0"))))


def split(source: Path) -> Conversion:
    """To two types, the larger one in shards."""
    return rtn(source, "-t", "Q4_0,Q8_0", "--split-max-size", "100K")


def in_processes(source: Path) -> Conversion:
    """By two worker processes, in shards."""
    arguments = (str(source), "-t", "Q4_0", "--threads", "2", "-q", "--split-max-size", "100K")
    return Conversion(arguments, ("-c", WITH_PROCESSES))


def gptq(source: Path) -> Conversion:
    """By a method that calibrates, and keeps what it has done for --resume."""
    text = source / "text.txt"
    text.write_text("to be or not to be " * 300)
    calibration = ("--method", "gptq", "--calibration", str(text), "--calibration-tokens", "512")
    return rtn(source, "-t", "Q4_0", *calibration)


def environment(mark: str = "") -> dict[str, str]:
    """Of the processes started here: offline, and they write nothing but what they are for."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1", _MARK: mark}


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that are at a final name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def litter(folder: Path) -> list[str]:
    """What is there and is no output."""
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def assert_nothing_partial(conversion: Conversion, out: Path) -> None:
    """Every file at a final name is the right one."""
    assert digests(out).items() <= conversion.digests.items()


def assert_next_run_finishes(conversion: Conversion, out: Path) -> None:
    """The same command, after a death, gives the same files and clears what was left.

    It exits 9 only if all files were complete.
    """
    complete = digests(out) == conversion.digests
    code, message = run_here(["convert", *conversion.arguments, "-o", str(out), "--resume"])
    assert code in ((0, 9) if complete else (0,)), message
    assert digests(out) == conversion.digests
    assert litter(out) == []


def run_here(arguments: list[str]) -> tuple[int, str]:
    """Exit code and stderr of the command line run in this process, which saves its imports."""
    from quantcli.cli import main

    with patch("sys.argv", ["quantcli", *arguments]), redirect_stderr(StringIO()) as stderr:
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), stderr.getvalue()
        finally:  # children would inherit that signals are ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise RuntimeError("the command line did not exit")


def killed_at(call: str, number: int, conversion: Conversion, out: Path) -> str | None:
    """Run until some thread makes that call for the `number`-th time; what the call was to do.

    The thread's process is killed before the call has any effect. None: there is no such call.
    """
    out.mkdir()
    log = out.with_suffix(".log")
    strace = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={call}"]
    strace += ["-e", f"inject={call}:signal=KILL:when={number}"]
    subprocess.run(
        [*strace, *conversion.command(out)], env=environment(), capture_output=True, timeout=120
    )
    return _last_call(log.read_text().splitlines())


def _last_call(log: list[str]) -> str | None:
    dead = {found[1] for line in log if (found := _DEATH.match(line))}
    calls = [found for line in log if (found := _CALL.match(line)) and found[1] in dead]
    if not dead:
        return None
    _, call, target = calls[-1].groups()
    kinds = (".part", ".resume", "socket:", "pipe:", "stderr")
    return f"{call} {next((kind for kind in kinds if kind in target.split(', ')[0]), 'other')}"


def sweep(conversion: Conversion, folder: Path, calls: tuple[str, ...] = CALLS) -> "Counter[str]":
    """Kill at every call, one run each; how many were killed where.

    Each thread counts its calls itself, and who comes first is killed.
    """
    struck: Counter[str] = Counter()
    for call in calls:
        for number in range(1, MOST):
            out = folder / f"{call}-{number}"
            where = killed_at(call, number, conversion, out)
            assert_nothing_partial(conversion, out)
            if where is None:
                break
            struck[where] += 1
            assert_next_run_finishes(conversion, out)
            shutil.rmtree(out)
    return struck


def survivors(mark: str, grace: float = 10.0) -> list[str]:
    """Processes started with that mark, by them or by us, that are still there after `grace` s."""
    deadline = time.monotonic() + grace
    while (found := marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def marked(mark: str) -> list[str]:
    wanted, found = f"{_MARK}={mark}\0".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes() + b"\0":
                found.append((process / "cmdline").read_text())
        except OSError:  # it has just ended, or is another user's
            continue
    return found
