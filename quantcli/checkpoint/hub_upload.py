"""Uploads to the Hugging Face hub by the official client: the files of a model in one commit.

The client asks before it sends: content the hub has already, by sha256, is not sent again, so an
upload that broke off goes on where it was when it is run again.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)
from huggingface_hub.utils import logging as hub_logging

from quantcli.checkpoint.files import show
from quantcli.checkpoint.hub_calls import WORTH_A_RETRY, call, explain, host
from quantcli.errors import AccessError, BadInputError, NetworkError, QuantcliError, UsageError

_T = TypeVar("_T")
_DENIED = (401, 403, 404)  # 404: the hub does not even tell that a private repository exists
_RIVALS = (409, 412)  # another commit came in between
_REASON_LIMIT = 240


def upload(
    repo_id: str, files: Mapping[str, Path | bytes], *, private: bool = False, message: str
) -> str:
    """Commit files to a model repository on the hub; return the address of the commit.

    `files` has what to upload, or where it is, by the name in the repository. The repository
    `org/name` is made if there is none; without `private` it is as visible as the account's
    default says. Where nothing differs there is no new commit, and the latest one is returned.

    Raises: UsageError (an impossible name; private, but the repository is public), BadInputError (a
    model card that the hub does not take), AccessError (a file is missing, no write access, no
    room), NetworkError.
    """
    _check(repo_id, files)
    api = HfApi()
    with _silence():
        _attempt(repo_id, partial(api.create_repo, repo_id, private=private or None, exist_ok=True))
        if private and not _attempt(repo_id, partial(api.model_info, repo_id)).private:
            raise UsageError(
                f"{show(repo_id)} is to be private, but exists on {host()} and is public"
            )
        additions = _attempt(repo_id, partial(_additions, files))
        for addition in additions:  # one by one: an attempt that fails repeats one file
            send = partial(api.preupload_lfs_files, repo_id, [addition], free_memory=False)
            _attempt(repo_id, send)
        commit = partial(api.create_commit, repo_id, additions, commit_message=message)
        made = _attempt(repo_id, commit).oid
    if not isinstance(made, str) or not re.fullmatch("[0-9a-f]{40}", made):
        raise NetworkError(f"{host()} names the odd commit {show(made)}")
    hub = urlsplit(constants.ENDPOINT)
    return f"{hub.scheme}://{hub.netloc.rpartition('@')[2]}/{repo_id}/commit/{made}"


def _check(repo_id: str, files: Mapping[str, Path | bytes]) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UsageError(f"{show(repo_id)} is no hub id like org/name") from error
    if "/" not in repo_id:
        raise UsageError(f"{show(repo_id)} is no hub id like org/name")
    for name, content in files.items():
        parts = re.split(r"[/\\]", name)
        if not name.isprintable() or {"", ".", "..", ".git"} & set(parts):
            raise UsageError(f"{show(name)} cannot be the name of a file on the hub")
        if isinstance(content, Path) and not content.is_file():
            raise AccessError(f"{show(str(content))}: no such file to upload")
    if constants.HF_HUB_OFFLINE:
        raise AccessError(f"{show(repo_id)}: nothing can be uploaded while HF_HUB_OFFLINE is set")


def _additions(files: Mapping[str, Path | bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(name, content) for name, content in files.items()]


def _attempt(repo_id: str, function: Callable[[], _T]) -> _T:
    try:
        return call(repo_id, partial(_bare, function), explain=_explain)
    except (KeyError, TypeError, AttributeError) as error:
        raise NetworkError(f"{host()} does not answer like a Hugging Face hub") from error


def _bare(function: Callable[[], _T]) -> _T:
    """Call it; of the error that the client wraps around what befell one file, raise the inside."""
    try:
        return function()
    except RuntimeError as error:
        raise error.__cause__ or error from None


def _explain(
    error: BaseException, repo_id: str, revision: str | None
) -> tuple[QuantcliError, bool]:
    """As hub_calls.explain, for a repository that is written to."""
    name = show(repo_id)
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = _reason(getattr(error, "server_message", None))
    if status in _DENIED:
        return AccessError(
            f"{host()} does not let you write to {name} (HTTP {status}{reason}): "
            "set HF_TOKEN to a token that may write there"
        ), False
    if status in _RIVALS:
        return NetworkError(
            f"{name} on {host()} is being changed by others (HTTP {status}): try again later"
        ), True
    if status is not None and status not in WORTH_A_RETRY:
        return AccessError(f"{host()} refuses the upload to {name} (HTTP {status}{reason})"), False
    if status is None and isinstance(error, json.JSONDecodeError):
        return NetworkError(f"{host()} sends a garbled answer for {name}: try again later"), True
    if isinstance(error, ValueError) and str(error).startswith("Invalid metadata in README.md"):
        return BadInputError(f"{host()} does not take the README.md{_reason(error)}"), False
    if isinstance(error, ValueError) and str(error).startswith("LFS batch API returned errors"):
        return AccessError(f"{host()} refuses files for {name}{_reason(error)}"), False
    if isinstance(error, HTTPError) and status is None:
        return NetworkError(
            f"the upload to {name} on {host()} broke off ({type(error).__name__}): try again; "
            "files that have arrived are not sent again"
        ), True
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number is not None and status is None:
        return AccessError(f"a file for {name} cannot be read: {os.strerror(number)}"), False
    return explain(error, repo_id, revision)


def _reason(told: object) -> str:
    """What the hub says of an error, in one line that never holds the token."""
    if not told:
        return ""
    text = " ".join(str(told).split())
    if token := get_token():
        text = text.replace(token, "(token)")
    return f": {show(text, _REASON_LIMIT)}"


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the client's bars, log and warnings to itself: what goes wrong is told in one line."""
    if "HF_HUB_VERBOSITY" not in os.environ:
        hub_logging.set_verbosity_error()
    bars = not are_progress_bars_disabled()
    if bars:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if bars:
            enable_progress_bars()
