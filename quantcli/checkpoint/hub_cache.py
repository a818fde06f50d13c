"""The client's cache: filling it, checking what is in it by hash, and living on it offline.

The client compares only sizes, so a flipped bit would pass: here each file is hashed on each use.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.utils import tqdm

from quantcli.checkpoint.cached_weights import CachedWeights
from quantcli.checkpoint.checkpoint import Checkpoint
from quantcli.checkpoint.files import SIDE_FILE_LIMIT, Folder, open_regular, show
from quantcli.checkpoint.folder import open_folder
from quantcli.checkpoint.hub_calls import call, host
from quantcli.checkpoint.layout import INDEX, GgufOnlyError, find_layout
from quantcli.checkpoint.remote_file import RemoteFile, hasher, usable_digest
from quantcli.errors import AccessError, IntegrityError, NetworkError, ResourceError
from quantcli.progress import Progress

_CHUNK = 4 << 20


class CachedRepo:
    """One commit of a hub model in the local cache; `config` is a file that it surely has."""

    def __init__(self, repo_id: str, commit: str, config: str = "config.json") -> None:
        self.repo_id, self.commit, self._config = repo_id, commit, config

    def download(self, files: Sequence[RemoteFile], progress: Progress) -> Path:
        """Bring `files` into the cache and verify them; return the folder, that of the config.

        Raises: AccessError, NetworkError, IntegrityError, ResourceError (too little disk).
        """
        if missing := self.missing(files):
            self._fetch_all(missing, progress)
        root = self._folder(self._cached(self._config))
        if root is None:
            raise NetworkError(f"{host()} serves another commit of {show(self.repo_id)} than asked")
        verify(root, files, progress)
        return root

    def missing(self, files: Sequence[RemoteFile]) -> list[RemoteFile]:
        """Those of `files` that are not in the cache."""
        return [file for file in files if self._cached(file.name) is None]

    def _cached(self, name: str, revision: str | None = None) -> Path | None:
        path = try_to_load_from_cache(self.repo_id, name, revision=revision or self.commit)
        return Path(path) if isinstance(path, str) else None

    def _folder(self, config: Path | None) -> Path | None:
        """The folder of the commit, by the place of the config in it."""
        depth = self._config.count("/")
        return None if config is None else config.parents[depth].resolve()

    def _fetch_all(self, files: Sequence[RemoteFile], progress: Progress) -> None:
        size = sum(file.size for file in files)
        _require_disk(size)
        progress.start(f"Downloading {self.repo_id}", size)
        try:
            for file in files:
                self._fetch(file.name, progress)
        finally:
            progress.finish()

    def _fetch(self, name: str, progress: Progress) -> None:
        done = 0

        class Bar(tqdm):
            """Hands the client's progress on instead of drawing it."""

            def __init__(self, *_: Any, **__: Any) -> None:
                super().__init__(disable=True)

            def update(self, n: float | None = 1) -> None:
                nonlocal done
                done += int(n or 0)
                progress.advance(int(n or 0))

            def update_transfer(self, n: float | None = 1) -> None:
                """Bytes on the wire, of which the client tells separately, do not count."""

        def attempt() -> None:
            nonlocal done
            progress.advance(-done)
            done = 0
            hf_hub_download(self.repo_id, name, revision=self.commit, tqdm_class=Bar)

        call(self.repo_id, attempt)

    def remember(self, revision: str) -> None:
        """Let the cache know the commit of `revision`, so that it can be opened offline."""
        known = self._folder(self._cached(self._config, revision))
        if known is None or known.name != self.commit:
            # Only a request by name makes the client write it down; the file itself is there.
            ask = partial(hf_hub_download, self.repo_id, self._config, revision=revision)
            call(self.repo_id, ask)


def _require_disk(size: int) -> None:
    folder = Path(constants.HF_HUB_CACHE).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ResourceError(
            f"the download needs {size} bytes but {show(str(folder))} has {free}: set HF_HOME"
        )


def open_cached(repo_id: str, revision: str, progress: Progress) -> Checkpoint:
    """Open what the cache holds of `repo_id` at `revision`, without any request.

    Raises: AccessError (not or not completely cached), IntegrityError, BadInputError,
    UnsupportedError.
    """
    root = cached_folder(repo_id, revision, "config.json")
    side_files = Folder(root)
    names = side_files.names
    needed = {"config.json"}
    if any(name.endswith(".safetensors") for name in names):
        needed.update(find_layout(names, side_files.json(INDEX)).files)
    elif any(root.glob("*.gguf")) or any(root.glob("*/*.gguf")):
        raise GgufOnlyError(f"only GGUF files of {show(repo_id)} are in the cache")
    cached = CachedWeights(root, sorted(needed - {"config.json"}))
    # The client leaves dangling links behind when content is deleted by hand.
    present = {name for name in names if (root / name).exists()}
    if len(needed) == 1 or not needed <= present:
        raise AccessError(
            f"{show(repo_id)} is not completely in the cache: unset HF_HUB_OFFLINE to download it"
        )
    files = [cached_file(root, name) for name in sorted(present)]
    used = [file for file in files if file.name in needed or file.size <= SIDE_FILE_LIMIT]
    verify(root, used, progress)
    return open_folder(root, repo_id, root.name, cached)


def cached_folder(repo_id: str, revision: str, config: str) -> Path:
    """The folder in which the cache has `repo_id` at `revision`, by a file it surely has.

    Raises: AccessError (not cached).
    """
    find = partial(snapshot_download, repo_id, revision=revision, local_files_only=True)
    return Path(call(repo_id, partial(find, allow_patterns=config))).resolve()


def cached_file(root: Path, name: str) -> RemoteFile:
    """Describe a cached file: the client names its content by the hash the hub announced."""
    path = root / name
    digest = usable_digest(path.readlink().name) if path.is_symlink() else None
    return RemoteFile(name, path.stat().st_size, digest)


def verify(root: Path, files: Sequence[RemoteFile], progress: Progress) -> None:
    """Compare the content of `files` under `root` with their digests; discard what differs.

    Raises: IntegrityError, BadInputError (not regular files).
    """
    progress.start("Verifying", sum(file.size for file in files))
    try:
        for file in files:
            found = _digest(root, file, progress) if file.digest is not None else None
            if found != file.digest:
                _discard(root / file.name)
                raise IntegrityError(
                    f"{show(file.name)} is damaged: its hash is {found}, the hub announces"
                    f" {file.digest}; it was removed from the cache, run again to download it"
                )
    finally:
        progress.finish()


def _digest(root: Path, file: RemoteFile, progress: Progress) -> str:
    """Return the SHA-256 of the content or, if that is what was announced, git's SHA-1."""
    with open_regular(root, file.name) as stream:
        sha = hasher(replace(file, size=stream.seek(0, 2)))
        stream.seek(0)
        while chunk := stream.read(_CHUNK):
            sha.update(chunk)
            progress.advance(len(chunk))
    return str(sha.hexdigest())


def _discard(path: Path) -> None:
    """Remove a cached file: the links and the content behind them."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)
