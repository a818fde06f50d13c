"""GGUF files of a repository on the hub: which of them is meant, how they begin, their download."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import constants

from quantcli.checkpoint.cached_weights import CachedWeights
from quantcli.checkpoint.files import is_plain, open_regular, show
from quantcli.checkpoint.hub import fetch_range, list_files, quiet_client
from quantcli.checkpoint.hub_cache import (
    CachedRepo,
    RemoteFile,
    cached_file,
    cached_folder,
    verify,
)
from quantcli.checkpoint.hub_calls import call
from quantcli.errors import BadInputError, UsageError
from quantcli.progress import Progress

ENDING = ".gguf"
MOST_NAMED = 6  # of the models that an error offers to choose from
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_NOT_QUANTIZED = ("F32", "F16", "BF16", "FP32", "FP16")
_PROJECTOR = re.compile(r"(?:.*/)?mmproj[^/]*")  # what images go through: no language model


@dataclass(frozen=True)
class HubGguf:
    """The files of one GGUF model at one commit, the first part first.

    root: the folder that has them already, where nothing is to be asked of the network.
    """

    repo_id: str
    commit: str
    files: tuple[RemoteFile, ...]
    root: Path | None = None

    def begin(self, name: str, count: int) -> bytes:
        """The first `count` bytes of a file, or all of it. Raises AccessError, NetworkError."""
        if self.root is not None:
            with open_regular(self.root, name) as cached:
                return cached.read(count)
        file = next(file for file in self.files if file.name == name)
        read = partial(fetch_range, self.repo_id, self.commit, file, 0, min(count, file.size))
        return call(self.repo_id, read)

    @property
    def nbytes(self) -> int:
        """The size of all files."""
        return sum(file.size for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """What is still to be downloaded."""
        if self.root is not None:
            return 0
        return sum(file.size for file in self._repo.missing(self.files))

    def download(self, revision: str | None, progress: Progress) -> tuple[Path, CachedWeights]:
        """The folder of the repository in the cache, with all files, verified.

        Raises: AccessError, NetworkError, IntegrityError, ResourceError, BadInputError.
        """
        if self.root is not None:
            verify(self.root, self.files, progress)
            return self.root, CachedWeights(self.root, [file.name for file in self.files])
        root = self._repo.download(self.files, progress)
        self._repo.remember(revision or constants.DEFAULT_REVISION)
        return root, CachedWeights(root, [file.name for file in self.files])

    @property
    def _repo(self) -> CachedRepo:
        return CachedRepo(self.repo_id, self.commit, self.files[0].name)


def find_gguf(repo_id: str, choice: str | None, revision: str | None) -> HubGguf:
    """The model of the repository that `choice` names, see `choose`; offline, of what is cached.

    Raises: UsageError (no such file, or several), AccessError, NetworkError, BadInputError.
    """
    quiet_client()
    revision = revision or constants.DEFAULT_REVISION
    if constants.HF_HUB_OFFLINE:
        root = cached_folder(repo_id, revision, f"*{ENDING}")
        found = [*root.glob(f"*{ENDING}"), *root.glob(f"*/*{ENDING}")]
        there = [path.relative_to(root).as_posix() for path in found if path.exists()]
        names = choose(repo_id, there, choice)
        return HubGguf(repo_id, root.name, tuple(cached_file(root, name) for name in names), root)
    commit, files = list_files(repo_id, revision)
    names = choose(repo_id, files, choice)
    return HubGguf(repo_id, commit, tuple(files[name] for name in names))


def choose(repo_id: str, names: Collection[str], choice: str | None) -> list[str]:
    """The files of one GGUF model among `names`, in order.

    choice: its name, of a split one that of any part or without number, or the type that its name
    ends in; None for the only one, or the only one whose name tells F32, F16 or BF16.

    Raises: UsageError (none, or several), BadInputError (parts are missing).
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.endswith(ENDING) and is_plain(name) and not _PROJECTOR.fullmatch(name):
            models.setdefault(_whole(name), []).append(name)
    if not models:
        raise UsageError(f"{show(repo_id)} has no GGUF model")
    if choice is None:
        fitting = list(models)
        if len(models) > 1:
            fitting = [model for model in models if any(_is_of(model, t) for t in _NOT_QUANTIZED)]
    else:
        named = _whole(choice if choice.endswith(ENDING) else choice + ENDING)
        fitting = [m for m in models if named in (m, m.rpartition("/")[2])]
        fitting = fitting or [m for m in models if _is_of(m, choice)]
    if len(fitting) != 1:
        raise UsageError(_which(repo_id, choice, fitting, list(models)))
    return _complete(repo_id, models[fitting[0]])


def _whole(name: str) -> str:
    """The name of a model's file, without the number of a part."""
    match = _PART.fullmatch(name)
    return f"{match[1]}{ENDING}" if match else name


def _is_of(model: str, kind: str) -> bool:
    """Whether a name ends in a type: "m-Q8_0.gguf", "m.f16.gguf"."""
    stem, ending = model.removesuffix(ENDING).casefold(), kind.casefold()
    return stem == ending or re.search(rf"[-._/]{re.escape(ending)}$", stem) is not None


def _complete(repo_id: str, parts: Sequence[str]) -> list[str]:
    match = _PART.fullmatch(parts[0])
    if match is None:
        return list(parts)
    count = int(match[3])
    if len(parts) != count or any(f"-{i + 1:05}-of-" not in p for i, p in enumerate(parts)):
        raise BadInputError(
            f"{show(repo_id)} has {len(parts)} of {count} parts of {show(_whole(parts[0]))}"
        )
    return list(parts)


def _which(repo_id: str, choice: str | None, fitting: list[str], models: list[str]) -> str:
    """One line that says how to choose."""
    among = fitting or models
    offered = ", ".join(show(name) for name in among[:MOST_NAMED])
    more = f" and {len(among) - MOST_NAMED} more" if len(among) > MOST_NAMED else ""
    how = f"give one as {repo_id}:NAME"
    if choice is not None and not fitting:
        return f"{show(repo_id)} has no GGUF model {show(choice)}, but {offered}{more}: {how}"
    what = "GGUF models"
    if choice is not None:
        what += f" that {show(choice)} fits"
    elif not fitting:
        what += ", none of whose names says F16, BF16 or F32"
    return f"{show(repo_id)} has {len(among)} {what} ({offered}{more}): {how}"
