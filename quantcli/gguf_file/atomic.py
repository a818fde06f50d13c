"""Output files that appear at their name complete, verified and durable, or not at all.

`.<name>.<pid>.part` -> write -> fsync -> read back -> link -> fsync(directory) -> unlink. While it
is written the part file carries a lock, which the kernel drops when its process dies: an unlocked
part file is litter of a killed run and is removed by the next one. Until all outputs of a run have
their final names each keeps its part file: a run that died in between is told by that.

Exit codes: 2 for an output that makes no sense (directory missing or read-only, the output is an
input), 7 for a full or failing disk, 8 when the disk returns other bytes than were written,
9 for an output that exists or is being written.
"""

import atexit
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from quantcli.errors import OutputExistsError, ResourceError, UsageError
from quantcli.gguf_file.part_file import PartFile, Run, one_line

_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}


@dataclass(frozen=True)
class WrittenFile:
    """A finished output file."""

    path: Path
    size_bytes: int
    sha256: str


def check_output(*paths: Path, force: bool = False, sources: Iterable[Path] = ()) -> None:
    """Refuse impossible outputs before any work; `sources` are the files that will be read.

    `paths` are all that a run will publish together. What dead runs left of them is removed.

    Raises UsageError (the directory is missing, no directory or read-only; a path is a directory,
    a device or, by whatever name, one of `sources`), OutputExistsError (it exists and not `force`,
    or is being written).
    """
    for path in paths:
        _check_place(path, sources)
    found = [path for path in paths if os.path.lexists(path)]
    halfway = len(found) < len(paths) and all(map(has_part, found))
    for path in paths:
        with one_line(path, "create"), _locked_directory(path.parent):
            _sweep(path, halfway=halfway)
    for path in paths:
        _refuse_existing(path, force)


def has_part(path: Path) -> bool:
    """Whether the file was published by a run that has not ended, or that died right then."""
    with suppress(OSError):  # above all, there is no such file
        return any(os.path.samestat(os.lstat(part), os.lstat(path)) for part, _ in _parts(path))
    return False


def _check_place(path: Path, sources: Iterable[Path]) -> None:
    directory = path.parent
    if not directory.is_dir():
        why = "is not a directory" if directory.exists() else "does not exist"
        raise UsageError(f"{path}: the output directory {directory} {why}; create it first")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"{path}: the output directory {directory} is not writable")
    for source in sources:
        with suppress(OSError):  # a missing output is what we hope for
            if path.samefile(source):
                raise UsageError(f"{path}: the output is the input {source}; choose another name")


def check_space(directory: Path, nbytes: int) -> None:
    """Raise ResourceError if `directory` has less than `nbytes` bytes free."""
    with one_line(directory, "look at"):
        free = shutil.disk_usage(directory).free
    if free < nbytes:
        raise ResourceError(
            f"{directory}: {nbytes} bytes are needed but {free} are free; "
            "free some space or choose another output directory"
        )


# Part files by the process that made them. A signal that ends the program may strike between the
# making of a file and the `with` that would remove it: what is still here at exit goes then.
_litter: dict[Path, int] = {}


@atexit.register
def _remove_litter() -> None:
    for part, pid in _litter.items():
        if pid == os.getpid():
            with suppress(OSError):
                part.unlink()


class AtomicFile:
    """One output file, as a context manager; whatever leaves the block unpublished is removed.

    Entering raises OutputExistsError if the file exists (unless `force`) or is being written.
    """

    def __init__(self, path: Path, *, force: bool = False) -> None:
        self.path, self.force = path, force
        self.part = path.with_name(f".{path.name}.{os.getpid()}.part")
        self.size = 0
        self.content = PartFile(path, self.part)
        self._runs: list[Run] = []
        self._sha256 = ""
        self._published: list[bool] = []  # shared by files that are published together

    def __enter__(self) -> Self:
        with one_line(self.path, "create"), _locked_directory(self.path.parent):
            _sweep(self.path)
            _refuse_existing(self.path, self.force)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            _litter[self.part] = os.getpid()
            self._fd = os.open(self.part, flags, 0o666)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self.__exit__(None, None, None)
                raise
            self.content = PartFile(self.path, self.part, self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._published:
            with suppress(FileNotFoundError):  # it has its final name, but its companions do not
                if os.path.samestat(os.lstat(self.path), os.fstat(self._fd)):
                    self.path.unlink()
        with suppress(FileNotFoundError):
            self.part.unlink()
        os.close(self._fd)
        _litter.pop(self.part, None)

    def write(self, data: bytes | np.ndarray) -> None:
        """Append the bytes of `data` (C-contiguous). Raises ResourceError if the disk is full."""
        self.add(self.content.write(self.size, data))

    def add(self, run: Run) -> None:
        """Take account of bytes at the end that `content` wrote, here or in another process."""
        self._runs.append(run)
        self.size += run.nbytes

    def verify(self, advance: Callable[[int], object] = abs) -> None:
        """Flush to disk and compare what the disk returns with what was written.

        `advance` hears of bytes that are done.
        """
        self._sha256 = self.content.read_back(self._runs, advance)

    def written(self) -> WrittenFile:
        """The verified file."""
        return WrittenFile(self.path, self.size, self._sha256)

    def rename(self) -> None:
        """Give the part file its final name, too; without `force` never over another file."""
        if self.force:
            self.part.replace(self.path)
            return
        try:
            os.link(self.part, self.path)
        except FileExistsError:
            raise _exists(self.path) from None
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            if os.path.lexists(self.path):
                raise _exists(self.path) from None
            self.part.replace(self.path)

    def share(self, published: list[bool]) -> None:
        """Leave the file in place when the block ends, if `published` has an item by then."""
        self._published = published


def publish(files: Sequence[AtomicFile]) -> list[WrittenFile]:
    """Make verified files of one directory final together, in one instant.

    The first file is renamed last: readers begin with it, so a set cut short by a power failure
    is not mistaken for a whole one. Part files go when the files' blocks end.
    """
    published: list[bool] = []
    for file in reversed(files):
        file.share(published)
        with one_line(file.path, "rename"):
            file.rename()
    directory = files[0].path.parent
    with one_line(directory, "flush"), _directory(directory) as fd:
        os.fsync(fd)
    published.append(True)
    return [file.written() for file in files]


def write_file(path: Path, data: bytes, *, force: bool = False) -> WrittenFile:
    """Write a small file in one go. Raises like AtomicFile."""
    with AtomicFile(path, force=force) as file:
        file.write(data)
        file.verify()
        return publish([file])[0]


def _exists(path: Path) -> OutputExistsError:
    return OutputExistsError(f"{path}: the output exists; choose another name or use --force")


def _refuse_existing(path: Path, force: bool) -> None:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: the output is a directory or a device, not a file")
    if not force and os.path.lexists(path):
        raise _exists(path)


def _parts(path: Path) -> Iterator[tuple[Path, str]]:
    """Part files of writers of `path`, dead or alive, each with its writer's pid."""
    mine = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.part")
    for part in path.parent.iterdir():
        if match := mine.fullmatch(part.name):
            yield part, match[1]


def _sweep(path: Path, *, halfway: bool = False) -> None:
    """Remove part files of dead writers of `path`; raise OutputExistsError for a living one.

    halfway: a writer died before all of its files had final names, so its file there goes as well.
    """
    for part, pid in _parts(path):
        with suppress(FileNotFoundError):  # its writer has just finished
            fd = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if halfway and has_part(path):
                    path.unlink()
                part.unlink()
            except BlockingIOError:
                raise OutputExistsError(
                    f"{path}: the output is being written by process {pid}; "
                    "wait for it or choose another name"
                ) from None
            finally:
                os.close(fd)


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _locked_directory(path: Path) -> Iterator[None]:
    """Let one process at a time look for rivals and put its own part file down."""
    with _directory(path) as fd:
        # Network file systems cannot lock a directory: there two writers that start in the
        # same instant may both refuse, but never both write.
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
