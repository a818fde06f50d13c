"""The bytes of an output under way: several processes may write them, one reads them back."""

import errno
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quantcli.errors import IntegrityError, QuantcliError, ResourceError, UsageError

READ_BYTES = 1 << 20  # at a time, when the file is read back

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
            if self._fd is None:
                self._fd = os.open(self.part, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            while view:
                n = os.pwrite(self._fd, view, offset)
                offset += n
                view = view[n:]
        return run

    def read_back(self, runs: Iterable[Run], advance: Callable[[int], object]) -> str:
        """The SHA-256 of the file as the disk, not its cache, returns it; `runs` in file order.

        `advance` hears of bytes read. Raises IntegrityError if they are not what was written.
        """
        sha256 = hashlib.sha256()
        buffers = [memoryview(bytearray(READ_BYTES)) for _ in range(2)]
        with (
            one_line(self.path, "write"),
            self.part.open("rb") as file,
            ThreadPoolExecutor(1) as pool,  # hashes what was read while we read on
        ):
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            hashed: Future[object] = pool.submit(int)
            for nbytes, expected in runs:
                crc32 = 0
                for start in range(0, nbytes, READ_BYTES):
                    view = buffers[0][: min(READ_BYTES, nbytes - start)]
                    crc32 = zlib.crc32(view[: file.readinto(view)], crc32)
                    hashed.result()
                    hashed = pool.submit(sha256.update, view)
                    buffers.reverse()
                if crc32 != expected:
                    raise self._damaged()
                advance(nbytes)
            hashed.result()
            if file.read(1):
                raise self._damaged()
        return sha256.hexdigest()

    def _damaged(self) -> IntegrityError:
        return IntegrityError(f"{self.path}: the disk returned other bytes than were written")


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
