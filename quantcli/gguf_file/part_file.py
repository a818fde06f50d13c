"""The bytes of an output under way: several processes may write them, one reads them back."""

import errno
import hashlib
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quantcli.errors import IntegrityError, QuantcliError, ResourceError, UsageError

BLOCK_BYTES = 1 << 20  # at a time, when the file is read back

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_MISPLACED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
}  # fmt: skip


class Run(NamedTuple):
    """Bytes that went into a file together: how many, and their CRC-32."""

    nbytes: int
    crc32: int


class PartFile:
    """The file `part` that will be `path`. A pickled one opens it anew on its first write."""

    def __init__(self, path: Path, part: Path, fd: int | None = None) -> None:
        self.path, self.part, self._fd = path, part, fd

    def __reduce__(self) -> tuple[type["PartFile"], tuple[Path, Path]]:
        return PartFile, (self.path, self.part)

    def write(self, offset: int, data: bytes | np.ndarray) -> Run:
        """Put `data` (C-contiguous) at `offset`. Raises ResourceError if the disk is full."""
        view = np.frombuffer(data, np.uint8).data
        run = Run(len(view), zlib.crc32(view))
        with one_line(self.path, "write"):
            fd = self._open()
            while view:
                n = os.pwrite(fd, view, offset)
                offset += n
                view = view[n:]
        return run

    def read_back(self, runs: Iterable[Run], advance: Callable[[int], object]) -> str:
        """The SHA-256 of the file as the disk, not its cache, returns it; `runs` in file order.

        `advance` hears of bytes read. Raises IntegrityError if they are not what was written.
        """
        sha256, checks = hashlib.sha256(), _Checks(runs)
        with one_line(self.path, "write"), ThreadPoolExecutor(1) as pool:
            os.fsync(self._open())
            hashed: Future[None] = pool.submit(sha256.update, b"")
            for block in _blocks_on_disk(self.part):
                if not checks.match(block):
                    raise self._damaged()
                hashed.result()  # one block is hashed while the next one is read and checked
                hashed = pool.submit(sha256.update, block)
                advance(len(block))
            hashed.result()
        if not checks.complete():
            raise self._damaged()
        return sha256.hexdigest()

    def _open(self) -> int:
        if self._fd is None:
            self._fd = os.open(self.part, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return self._fd

    def _damaged(self) -> IntegrityError:
        return IntegrityError(f"{self.path}: the disk returned other bytes than were written")


class _Checks:
    """Compares a file, block by block, with the runs that it was written in."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = iter(runs)
        self._left = self._expected = self._crc32 = 0

    def match(self, block: memoryview) -> bool:
        """Whether all runs that end in the next block of the file are as they were written."""
        while block:
            while not self._left:
                run = next(self._runs, None)
                if run is None:
                    return False
                self._left, self._expected, self._crc32 = *run, 0
            part, block = block[: self._left], block[self._left :]
            self._crc32 = zlib.crc32(part, self._crc32)
            self._left -= len(part)
            if not self._left and self._crc32 != self._expected:
                return False
        return True

    def complete(self) -> bool:
        """Whether the file ended where the last run does."""
        return not self._left and not any(run.nbytes for run in self._runs)


def _blocks_on_disk(part: Path) -> Iterator[memoryview]:
    """The file as the disk returns it. A block is good until the next but one is asked for."""
    buffers = [memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(2)]
    fd = _open_uncached(part, buffers[0])
    try:
        start = 0
        while n := os.preadv(fd, buffers[:1], start):
            yield buffers[0][:n]
            start += n
            buffers.reverse()
    finally:
        os.close(fd)


def _open_uncached(part: Path, buffer: memoryview) -> int:
    """Open a flushed file so that reads come from the disk."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    with suppress(OSError):  # not every file system knows direct reads
        fd = os.open(part, flags | getattr(os, "O_DIRECT", 0))
        try:
            os.preadv(fd, [buffer], 0)
        except OSError:
            os.close(fd)
            raise
        return fd
    fd = os.open(part, flags)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return fd


@contextmanager
def one_line(path: Path, action: str) -> Iterator[None]:
    """Turn an OSError into the error and exit code the user meets."""
    try:
        yield
    except OSError as error:
        reason = f"{path}: cannot {action}: {error.strerror or error}"
        kind: type[QuantcliError] = UsageError if error.errno in _MISPLACED else ResourceError
        if error.errno in _FULL:
            reason += "; free some space or choose another output directory"
        raise kind(reason) from error
