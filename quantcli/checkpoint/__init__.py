"""Every way in: a local folder or a hub id becomes a validated Checkpoint."""

import os
import re
from pathlib import Path

from quantcli.checkpoint.checkpoint import Checkpoint, SourceTensor, Weights
from quantcli.checkpoint.files import show
from quantcli.errors import AccessError, BadInputError, UsageError
from quantcli.progress import Progress

__all__ = ["Checkpoint", "SourceTensor", "Weights", "open_checkpoint"]

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.))*"
_HUB_ID = re.compile(f"{_PART}/{_PART}")


def open_checkpoint(
    source: str,
    revision: str | None = None,
    weights: bool = True,
    progress: Progress | None = None,
) -> Checkpoint:
    """Open `source`: a local folder, or else `org/name` on the Hugging Face hub.

    `revision` is a branch, tag or commit on the hub. With `weights` False nothing but the headers
    of a hub model's weights is fetched. A local folder wins over a hub model of the same name.

    Raises: UsageError, BadInputError, UnsupportedError, AccessError, NetworkError, ResourceError,
    IntegrityError.
    """
    if os.path.lexists(source):
        path = Path(source)
        if path.is_file():
            parent = str(path.parent)
            raise UsageError(f"{show(source)} is a file: give the folder it is in, {show(parent)}")
        if not path.is_dir():
            raise BadInputError(f"{show(source)} is not a folder")
        if revision is not None:
            raise UsageError(f"--revision is for hub models, but {show(source)} is a local folder")
        from quantcli.checkpoint.folder import open_folder

        root = path.resolve()
        return open_folder(root, root.name)
    if not _HUB_ID.fullmatch(source) or len(source) > 96:
        raise AccessError(f"{show(source)} is neither a folder here nor a hub id like org/name")
    from quantcli.checkpoint.hub import open_hub

    return open_hub(source, revision, weights, progress)
