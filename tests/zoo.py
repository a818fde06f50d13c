"""Small zoos for the tests of batches: a manifest, its models, and what became of them."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crashes import environment as marking
from crashes import marked
from tiny_models import build

MODELS = (("llama", "gqa"), ("qwen3", "tied"), ("gemma2", "tied"))
TYPES = ("Q4_0", "Q8_0")


@dataclass(frozen=True)
class Zoo:
    """A folder with zoo.toml and models; the shelf is beside the manifest."""

    folder: Path

    @property
    def shelf(self) -> Path:
        return self.folder / "shelf"

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """`quantcli batch` as a process of its own."""
        command = [sys.executable, "-m", "quantcli", "batch", "zoo.toml", "-o", "shelf"]
        return subprocess.Popen(
            [*command, *arguments],
            cwd=self.folder,
            env=marking(str(self.folder)) | {"COLUMNS": "80"} | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> "Ran":
        """The same, to its end."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=300)
        return Ran(process.returncode, out, err)

    def digests(self) -> dict[str, str]:
        """sha256 of every output."""
        return {
            path.relative_to(self.shelf).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.shelf.rglob("*.gguf"))
        }

    def litter(self) -> list[Path]:
        """What only a run that was killed leaves."""
        return [path for path in self.shelf.rglob(".*") if path.name.endswith((".part", ".resume"))]

    def summary(self, name: str = "summary.json") -> dict[str, Any]:
        return json.loads((self.shelf / name).read_text())

    def statuses(self) -> dict[str, tuple[str, int | None]]:
        """(status, exit code) by name of the source."""
        rows = self.summary()["jobs"]
        return {Path(row["source"]).name: (row["status"], row["exit_code"]) for row in rows}

    def begun(self) -> list[str]:
        """Names of the jobs that were started, once for each attempt."""
        lines = [json.loads(line) for line in (self.shelf / "ledger.jsonl").open()]
        return [line["name"] for line in lines if line["event"] == "started"]

    def damage(self, model: str) -> None:
        """Cut the end off the weights of a model."""
        path = self.folder / model / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-2])


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error: ")]


def make_zoo(folder: Path, copies: int = 1, settings: str = "") -> Zoo:
    """A zoo of `copies` of three tiny models, two types each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["[defaults]", f"types = {list(TYPES)}", settings]
    for copy in range(copies):
        for family, variant in MODELS:
            name = f"{family}{copy or ''}"
            build(folder / name, family, variant)
            lines += ["[[models]]", f'source = "./{name}"']
    (folder / "zoo.toml").write_text("\n".join(lines) + "\n")
    return Zoo(folder)


def clone(zoo: Zoo, folder: Path) -> Zoo:
    """The same zoo elsewhere, with nothing on its shelf; times of files are kept."""
    shutil.copytree(zoo.folder, folder, ignore=shutil.ignore_patterns("shelf"))
    return Zoo(folder)


def jobs_of(zoo: Zoo) -> list[str]:
    """Command lines of the jobs that run for a zoo, whoever started them."""
    return [line for line in marked(str(zoo.folder)) if "run-job" in line]


def wait_until_gone(zoo: Zoo, seconds: float = 20.0) -> None:
    """Wait for its jobs to end; those that do not are a failure."""
    deadline = time.monotonic() + seconds
    while left := jobs_of(zoo):
        assert time.monotonic() < deadline, f"{left} still run"
        time.sleep(0.02)


@contextmanager
def killing_writers_of(folder: Path) -> Iterator[list[int]]:
    """Inside the block, whoever writes an output in `folder` dies by SIGKILL; yields their pids."""
    import threading

    killed: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            with suppress(OSError):
                for path in folder.iterdir():
                    if path.name.endswith(".part"):
                        pid = int(path.name.split(".")[-2])
                        if pid not in killed:
                            os.kill(pid, signal.SIGKILL)
                            killed.append(pid)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield killed
    finally:
        over.set()
        watcher.join()
