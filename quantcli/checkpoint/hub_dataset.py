"""One file of a dataset on the Hugging Face hub, by the official client and into its cache."""

from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import tqdm

from quantcli.checkpoint.files import open_regular, show
from quantcli.checkpoint.hub_cache import verify
from quantcli.checkpoint.hub_calls import call, host
from quantcli.checkpoint.remote_file import RemoteFile, usable_digest
from quantcli.errors import AccessError, BadInputError
from quantcli.progress import Silent


class _NoBar(tqdm):
    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__(disable=True)


def fetch_dataset_file(repo_id: str, name: str, revision: str | None, limit: int) -> bytes:
    """The content of the file `name` of the dataset `repo_id`, verified by the announced hash.

    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are respected; `revision` None: main.

    Raises: BadInputError (over `limit` bytes), AccessError, NetworkError, IntegrityError,
    ResourceError.
    """
    revision = revision or constants.DEFAULT_REVISION
    path = call(f"datasets/{repo_id}", partial(_download, repo_id, name, revision, limit), revision)
    root = path.parents[len(PurePosixPath(name).parts) - 1].resolve()
    digest = usable_digest(path.readlink().name) if path.is_symlink() else None
    verify(root, [RemoteFile(name, path.stat().st_size, digest)], Silent())
    with open_regular(root, name) as file:
        data = file.read(limit + 1)
    _check_size(name, len(data), limit)
    return data


def _download(repo_id: str, name: str, revision: str, limit: int) -> Path:
    try:
        if not constants.HF_HUB_OFFLINE:
            url = hf_hub_url(repo_id, name, repo_type="dataset", revision=revision)
            found = get_hf_file_metadata(url, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            _check_size(name, found.size or 0, limit)
        path = hf_hub_download(
            repo_id, name, repo_type="dataset", revision=revision, tqdm_class=_NoBar
        )
    except GatedRepoError:
        raise
    except RemoteEntryNotFoundError as error:
        raise AccessError(f"the dataset {show(repo_id)} has no file {show(name)}") from error
    except RepositoryNotFoundError as error:
        raise AccessError(
            f"there is no dataset {show(repo_id)} on {host()}: check the spelling, or set "
            "HF_TOKEN if it is private"
        ) from error
    return Path(path)


def _check_size(name: str, size: int, limit: int) -> None:
    if size > limit:
        raise BadInputError(
            f"{show(name)} has {size} bytes, over the limit of {limit}: save a part of it in a file"
        )
