"""Every way in: a local folder or a hub id becomes a validated Checkpoint, or an Adapter of one."""

import os
import re
from pathlib import Path

from quantcli.checkpoint.adapter import Adapter, AdapterRef, read_adapter
from quantcli.checkpoint.checkpoint import Checkpoint
from quantcli.checkpoint.files import show
from quantcli.checkpoint.layout import GgufOnlyError
from quantcli.checkpoint.source_tensor import SourceTensor, Weights
from quantcli.errors import AccessError, BadInputError, UnsupportedError, UsageError
from quantcli.progress import Progress

__all__ = [
    "Adapter",
    "AdapterRef",
    "Checkpoint",
    "GgufOnlyError",
    "SourceTensor",
    "Weights",
    "gguf_choice",
    "open_adapter",
    "open_checkpoint",
]

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.))*"
_HUB_ID = re.compile(f"{_PART}/{_PART}")


def open_checkpoint(
    source: str,
    revision: str | None = None,
    weights: bool = True,
    progress: Progress | None = None,
    stream: bool = False,
) -> Checkpoint:
    """Open `source`: a local folder, or else `org/name` on the Hugging Face hub.

    `revision` is a branch, tag or commit on the hub. With `weights` False nothing but the headers
    of a hub model's weights is fetched. A local folder wins over a hub model of the same name.
    `stream`: the weights of a hub model are not stored but come by `Checkpoint.stream`.

    Raises: UsageError, BadInputError, UnsupportedError (a GgufOnlyError where a hub model has no
    other weights than GGUF files), AccessError, NetworkError, ResourceError, IntegrityError.
    """
    if (root := _local(source)) is not None:
        if revision is not None:
            raise UsageError(f"--revision is for hub models, but {show(source)} is a local folder")
        if stream:
            raise UsageError(f"--stream is for hub models, but {show(source)} is a local folder")
        from quantcli.checkpoint.folder import open_folder

        try:
            return open_folder(root, root.name)
        except GgufOnlyError as error:
            raise UnsupportedError(str(error)) from None
    from quantcli.checkpoint.hub import open_hub

    return open_hub(source, revision, weights, progress, stream)


def open_adapter(ref: AdapterRef, base: Checkpoint, progress: Progress | None = None) -> Adapter:
    """Open a LoRA adapter of `base`: a local folder, or else `org/name` on the hub.

    Raises: as open_checkpoint.
    """
    if (root := _local(ref.source)) is not None:
        return read_adapter(root, root.name, None, ref.scale, base)
    from quantcli.checkpoint.hub_adapter import fetch_adapter

    root, commit = fetch_adapter(ref.source, progress)
    return read_adapter(root, ref.source, commit, ref.scale, base)


def gguf_choice(source: str) -> tuple[str, str] | None:
    """(id, choice) of "org/name:choice", a GGUF model on the hub; None for any other source."""
    repo_id, colon, choice = source.partition(":")
    if not colon or not choice or not _HUB_ID.fullmatch(repo_id) or os.path.lexists(source):
        return None
    return repo_id, choice


def _local(source: str) -> Path | None:
    """The resolved folder `source`; None for an id on the hub."""
    if os.path.lexists(source):
        path = Path(source)
        if path.is_file():
            parent = str(path.parent)
            raise UsageError(f"{show(source)} is a file: give the folder it is in, {show(parent)}")
        if not path.is_dir():
            raise BadInputError(f"{show(source)} is not a folder")
        return path.resolve()
    if not _HUB_ID.fullmatch(source) or len(source) > 96:
        raise AccessError(f"{show(source)} is neither a folder here nor a hub id like org/name")
    return None
