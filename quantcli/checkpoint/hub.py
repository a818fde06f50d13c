"""A model on the Hugging Face hub as a source, by the official client and into its cache.

Of a repository only safetensors weights, configuration, tokenizer and templates are fetched: no
pickles, no code. For planning, the headers of the weights are read by Range requests instead.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff
from huggingface_hub.utils import logging as hub_logging

from quantcli.checkpoint.cached_weights import CachedWeights
from quantcli.checkpoint.checkpoint import Checkpoint
from quantcli.checkpoint.files import (
    MODULES,
    POOLING,
    SIDE_FILE_LIMIT,
    TEMPLATE_FOLDER,
    Folder,
    is_plain,
    show,
)
from quantcli.checkpoint.folder import open_folder, read_config
from quantcli.checkpoint.fused import is_fused, single_experts
from quantcli.checkpoint.hub_cache import CachedRepo, open_cached
from quantcli.checkpoint.hub_calls import call, host
from quantcli.checkpoint.hub_stream import HubStream, StreamedWeights
from quantcli.checkpoint.interleaved import InterleavedExperts, is_interleaved, is_kept
from quantcli.checkpoint.layout import INDEX, all_tensors, find_layout, join_headers
from quantcli.checkpoint.prequantized import read_format
from quantcli.checkpoint.prequantized.weights import PackedWeights
from quantcli.checkpoint.remote_file import RemoteFile, usable_digest
from quantcli.checkpoint.safetensors import Header, from_bytes, header_length, parse_header
from quantcli.checkpoint.source_tensor import READABLE
from quantcli.errors import BadInputError, NetworkError, UnsupportedError
from quantcli.progress import Progress, Silent

SIDE_FILES = frozenset(
    "config.json generation_config.json tokenizer.json tokenizer_config.json tokenizer.model"
    " spiece.model qwen.tiktoken tiktoken.model"
    " special_tokens_map.json added_tokens.json vocab.json merges.txt chat_template.json"
    f" chat_template.jinja README.md {INDEX} {MODULES} {POOLING}".split()
)
# Enough for the headers of nearly all files in one request.
HEADER_GUESS = 256 << 10


def open_hub(
    repo_id: str,
    revision: str | None,
    weights: bool,
    progress: Progress | None,
    stream: bool = False,
) -> Checkpoint:
    """Open `repo_id` at `revision` (branch, tag, commit; None: main), downloading what is missing.

    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are respected. With `weights` False only the
    headers of the weights are fetched, unless offline; so are they with `stream`, and the weights
    when they are read.

    Raises: AccessError, NetworkError, IntegrityError, ResourceError, BadInputError,
    UnsupportedError.
    """
    quiet_client()
    revision = revision or constants.DEFAULT_REVISION
    if constants.HF_HUB_OFFLINE and not stream:
        return open_cached(repo_id, revision, progress or Silent())
    commit, files = list_files(repo_id, revision)
    if "config.json" not in files:
        find_layout(files, None)  # says it if the repository holds something else
        raise BadInputError(f"{show(repo_id)} has no config.json")
    repo = CachedRepo(repo_id, commit)
    root = repo.download([file for file in files.values() if _is_side_file(file)], Silent())
    side_files = Folder(root)
    layout = find_layout(files, side_files.json(INDEX) if INDEX in files else None)
    config = read_config(side_files)
    form = None if is_kept(config) else read_format(config)  # before anything is downloaded
    for name in layout.files:
        if name not in files:
            raise BadInputError(f"{show(repo_id)} lacks {show(name)}, named in {INDEX}")
    shards = [files[name] for name in layout.files]
    if not weights or stream:
        headers = {shard.name: _fetch_header(repo_id, commit, shard) for shard in shards}
        homes = join_headers(headers, layout)
        streamed = HubStream(repo_id, commit, [(shard, headers[shard.name]) for shard in shards])
        tensors = all_tensors(headers)
        if form is None and is_fused(config):
            tensors = single_experts(tensors.values())
        elif form is None and is_interleaved(config):
            if stream:
                raise UnsupportedError(
                    f"{show(repo_id)}: --stream cannot read experts whose rows take turns; leave it"
                    " out"
                )
            tensors = InterleavedExperts(tensors, None).tensors
        if form is not None and stream:
            raise UnsupportedError(
                f"{show(repo_id)} is quantized ({form.title}), which --stream cannot read; leave"
                " it out"
            )
        if form is not None:
            remote = _RemoteWeights(repo_id, commit, files, headers, homes)
            tensors = PackedWeights(form, tensors, remote).tensors
        return Checkpoint(
            repo_id,
            commit,
            config,
            tensors,
            side_files,
            weights=StreamedWeights(tensors, homes, streamed.rows) if stream else None,
            source_bytes=sum(shard.size for shard in shards),
            missing_bytes=sum(shard.size for shard in (shards if stream else repo.missing(shards))),
            stream=streamed if stream else None,
            quantized=form.title if form else None,
            readable=READABLE,
        )
    cached = CachedWeights(root, layout.files)
    repo.download(shards, progress or Silent())
    repo.remember(revision)
    return open_folder(root, repo_id, commit, cached)


def quiet_client() -> None:
    """Keep the client's own warnings off the terminal, unless its user wants them."""
    if "HF_HUB_VERBOSITY" not in os.environ:
        hub_logging.set_verbosity_error()


def _is_side_file(file: RemoteFile) -> bool:
    folder, _, base = file.name.rpartition("/")
    template = folder == TEMPLATE_FOLDER and base.endswith(".jinja") and is_plain(base)
    if not (template or file.name in SIDE_FILES):
        return False
    if file.size > SIDE_FILE_LIMIT:
        raise BadInputError(f"{show(file.name)} is over the limit of {SIDE_FILE_LIMIT} bytes")
    return True


def list_files(repo_id: str, revision: str) -> tuple[str, dict[str, RemoteFile]]:
    """Return the commit of `revision` and all its files with sizes and announced hashes."""
    ask = partial(HfApi().model_info, repo_id, revision=revision, files_metadata=True)
    try:
        patient = partial(ask, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        info = call(repo_id, patient, revision)
        commit, siblings = str(info.sha), info.siblings or []
        listed = [_remote_file(sibling) for sibling in siblings]
    except (KeyError, TypeError, AttributeError) as error:
        raise NetworkError(f"{host()} does not answer like a Hugging Face hub") from error
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise NetworkError(f"{host()} names the odd commit {show(commit)}")
    for file in listed:
        parts = re.split(r"[/\\]", file.name)
        if not file.name.isprintable() or parts[0] == "" or ".." in parts:
            raise BadInputError(f"{show(repo_id)} has the hostile file name {show(file.name)}")
    return commit, {file.name: file for file in listed}


def _remote_file(sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    size, digest = (lfs.size, lfs.sha256) if lfs else (sibling.size, sibling.blob_id)
    if type(size) is not int or size < 0 or not isinstance(sibling.rfilename, str):
        raise TypeError("a file without name or size")
    return RemoteFile(sibling.rfilename, size, usable_digest(digest))


def _fetch_header(repo_id: str, commit: str, file: RemoteFile) -> Header:
    """Read and validate the header of a weight file on the hub, without its tensors."""
    label = show(file.name)
    read = partial(fetch_range, repo_id, commit, file, 0)
    start = call(repo_id, partial(read, min(HEADER_GUESS, file.size)))
    end = 8 + header_length(start, file.size, label)
    if end > len(start):
        start = call(repo_id, partial(read, end))
    return parse_header(start[8:end], file.size, label)


@dataclass(frozen=True)
class _RemoteWeights:
    """Single tensors of a hub model, fetched alone: for small ones that tell sizes."""

    repo_id: str
    commit: str
    files: Mapping[str, RemoteFile]
    headers: Mapping[str, Header]
    homes: Mapping[str, str]

    def raw(self, name: str) -> np.ndarray:
        home = self.homes[name]
        tensor, begin = self.headers[home].tensors[name], self.headers[home].begins[name]
        file = self.files[home]
        read = partial(fetch_range, self.repo_id, self.commit, file, begin, tensor.nbytes)
        return from_bytes(tensor, call(self.repo_id, read))

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        raise RuntimeError(f"{self.repo_id} was opened for planning, without weights")


def fetch_range(repo_id: str, commit: str, file: RemoteFile, begin: int, count: int) -> bytes:
    """Return `count` bytes from `begin` on; a hub that ignores the Range is cut off there."""
    if count == 0:
        return b""
    wanted = f"bytes={begin}-{begin + count - 1}"
    headers = {**build_hf_headers(), "range": wanted, "accept-encoding": "identity"}
    url = hf_hub_url(repo_id, file.name, revision=commit)
    data = bytearray()
    with http_stream_backoff(
        "GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT, max_retries=0
    ) as response:
        hf_raise_for_status(response)
        first = 0 if response.status_code == HTTPStatus.PARTIAL_CONTENT else begin
        for chunk in response.iter_bytes(1 << 16):
            data += chunk
            if len(data) >= first + count:
                return bytes(data[first : first + count])
    raise NetworkError(f"{show(file.name)}: {host()} sent {len(data)} of {count} bytes")
