"""A LoRA adapter on the hub: its config, model card and weights, through the same cache."""

from pathlib import Path

from huggingface_hub import constants

from quantcli.checkpoint.adapter import WEIGHTS, check_files
from quantcli.checkpoint.adapter_config import CONFIG
from quantcli.checkpoint.files import Folder, show
from quantcli.checkpoint.hub import list_files, quiet_client
from quantcli.checkpoint.hub_cache import CachedRepo, cached_file, cached_folder, verify
from quantcli.progress import Progress, Silent

FILES = (CONFIG, WEIGHTS, "README.md")


def fetch_adapter(repo_id: str, progress: Progress | None) -> tuple[Path, str]:
    """The folder of the adapter `repo_id` in the cache, verified, and its commit.

    Raises: AccessError, NetworkError, IntegrityError, ResourceError, BadInputError,
    UnsupportedError.
    """
    quiet_client()
    if constants.HF_HUB_OFFLINE:
        return _cached(repo_id, progress or Silent())
    commit, files = list_files(repo_id, constants.DEFAULT_REVISION)
    check_files(files, show(repo_id))
    repo = CachedRepo(repo_id, commit, CONFIG)
    root = repo.download([files[name] for name in FILES if name in files], progress or Silent())
    repo.remember(constants.DEFAULT_REVISION)
    return root, commit


def _cached(repo_id: str, progress: Progress) -> tuple[Path, str]:
    root = cached_folder(repo_id, constants.DEFAULT_REVISION, CONFIG)
    names = [name for name in Folder(root).names if name in FILES and (root / name).exists()]
    check_files(names, f"the cached part of {show(repo_id)}")
    verify(root, [cached_file(root, name) for name in names], progress)
    return root, root.name
