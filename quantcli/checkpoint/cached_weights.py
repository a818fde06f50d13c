"""The weight files of one commit in the hub's cache: shared while they are read, then removed."""

import fcntl
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub.utils import DeleteCacheStrategy


class CachedWeights:
    """Weight files in the snapshot folder `root` that this process reads.

    Who reads them holds a shared lock on the folder, which its process loses however it ends, so
    that no run removes what another one still needs. Readers map a tensor only while they use it
    (see SafetensorsFile), so that to unlink a file is enough, and never hurts who maps it.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._root, self._pending = root, dict[str, None]()
        self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)
        with suppress(OSError):  # some network file systems cannot lock a folder
            fcntl.flock(self._fd, fcntl.LOCK_SH)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # in another process None: it only reads

    def free(self, *names: str) -> list[str]:
        """Remove the files from the cache, and those that could not be removed before.

        Other revisions that share the content lose it as well: the client downloads it again.
        Returns a warning where something stays.
        """
        self._pending |= dict.fromkeys(names)
        why = "another run reads them"
        try:
            with self._alone() as alone:
                for name in list(self._pending) if alone else ():
                    _remove(self._root, name)
                    del self._pending[name]
        except OSError as error:
            why = os.strerror(error.errno or 0)
        if not self._pending:
            return []
        return [f"{len(self._pending)} of the source's files stay in the hub's cache: {why}"]

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Tell whether nobody else reads, and keep others out until the end."""
        # To change the kind of a lock is not atomic: one process at a time does it.
        with _locked(self._root.parent):
            alone = True
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone = False
            except OSError:
                pass
            try:
                yield alone
            finally:
                with suppress(OSError):
                    fcntl.flock(self._fd, fcntl.LOCK_SH)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove(root: Path, name: str) -> None:
    """Remove a file of the snapshot `root` and its content, which is in the repo's `blobs`.

    Content that the cache shares among repos goes with the last repo that has it: the client
    counts. Raises OSError.
    """
    path = root / name
    if not path.is_symlink():
        path.unlink(missing_ok=True)
        return
    blob = Path(os.path.normpath(path.parent / path.readlink()))
    path.unlink()
    if not blob.is_symlink():
        blob.unlink(missing_ok=True)
        return
    nothing: frozenset[Path] = frozenset()
    cache = root.parents[2]
    DeleteCacheStrategy(
        0, blobs=frozenset({blob}), refs=nothing, repos=nothing, snapshots=nothing, cache_dir=cache
    ).execute()
