"""The ledger: what was begun, finished and failed, one JSON line each, on disk before going on.

Appended to only, one fsync per line; a torn last line, of a crash, is ignored. Every shard of a
batch writes a ledger of its own; all of them are read. A finished output is believed only if its
sha256 is that of the file.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quantcli.errors import OutputExistsError
from quantcli.gguf_file.part_file import one_line

SCHEMA_VERSION = 1
STARTED, RETRYING, FINISHED, FAILED = "started", "retrying", "finished", "failed"


class Ledger:
    """The ledger of this run, open for appending as a context manager; it knows those of all.

    Entering raises OutputExistsError when another process runs the same batch, ResourceError or
    UsageError when the folder cannot be written.
    """

    def __init__(self, root: Path, shard: str | None = None) -> None:
        self.root = root
        suffix = f"-{shard.replace('/', '-of-')}" if shard else ""
        self.path = root / f"ledger{suffix}.jsonl"
        self._last: dict[str, dict[str, Any]] = {}
        self._begun: set[str] = set()

    def __enter__(self) -> Self:
        with one_line(self.path, "create"):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise OutputExistsError(
                f"{self.path}: another process runs this batch; wait for it, or use --shard"
            ) from None
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            os.write(self._fd, b"\n")  # what a crash tore must not spoil the next line
        found = [line for path in sorted(self.root.glob("ledger*.jsonl")) for line in _lines(path)]
        for record in sorted(found, key=lambda record: record["at"]):
            self._take(record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def add(self, event: str, key: str, **facts: Any) -> None:
        """Write one line and wait until it is on disk. Raises ResourceError for a full disk."""
        record = {"event": event, "key": key, "at": round(time.time(), 3), **facts}
        line = json.dumps({"schema_version": SCHEMA_VERSION, **record}, separators=(",", ":"))
        with one_line(self.path, "write"):
            os.write(self._fd, line.encode() + b"\n")
            os.fsync(self._fd)
        self._take(record)

    def last(self, key: str) -> dict[str, Any]:
        """The record of the last end that the task of a key came to; empty if there was none."""
        return self._last.get(key, {})

    def knows(self, output: str) -> bool:
        """Whether a job of this batch began to write that output, whatever became of it."""
        return output in self._begun

    def intact(self, keys: Iterable[str]) -> set[str]:
        """Those keys that are finished and whose files are all there with the same sha256."""
        wanted = [key for key in keys if self.last(key).get("event") == FINISHED]
        files = [(key, file) for key in wanted for file in self.last(key)["files"]]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            same = pool.map(lambda pair: self._is_intact(pair[1]), files)
            broken = {key for (key, _), good in zip(files, same, strict=True) if not good}
        return set(wanted) - broken

    def _is_intact(self, file: dict[str, Any]) -> bool:
        path = self.root / file["path"]
        with suppress(OSError):
            if path.stat().st_size == file["size_bytes"]:
                with path.open("rb") as stream:
                    return hashlib.file_digest(stream, "sha256").hexdigest() == file["sha256"]
        return False

    def _take(self, record: dict[str, Any]) -> None:
        if record["event"] == STARTED:
            self._begun.update(record["outputs"])
        elif record["event"] in (FINISHED, FAILED):
            self._last[record["key"]] = record


def _lines(path: Path) -> list[dict[str, Any]]:
    """The records of one ledger; lines that a crash tore are left out."""
    records = []
    for line in path.read_bytes().splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and {"event", "key", "at"} <= record.keys():
                records.append(record)
    return records
