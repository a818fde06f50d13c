"""A local folder as a source: config.json, safetensors weights, side files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.checkpoint.checkpoint import Checkpoint
from quantcli.checkpoint.files import Folder, show
from quantcli.checkpoint.fused import SingleExperts, is_fused
from quantcli.checkpoint.interleaved import InterleavedExperts, is_interleaved, is_kept
from quantcli.checkpoint.layout import INDEX, Layout, all_tensors, find_layout, join_headers
from quantcli.checkpoint.prequantized import read_format
from quantcli.checkpoint.prequantized.weights import PackedWeights
from quantcli.checkpoint.safetensors import SafetensorsFile, to_float32
from quantcli.checkpoint.source_tensor import READABLE
from quantcli.errors import BadInputError

if TYPE_CHECKING:
    from quantcli.checkpoint.cached_weights import CachedWeights

CONFIG_LIMIT = 4 << 20


def open_folder(
    root: Path, id: str, revision: str | None = None, cached: "CachedWeights | None" = None
) -> Checkpoint:
    """Open and validate the checkpoint in the resolved folder `root`; reads headers only.

    `revision` and `cached` are those of a hub model.

    Raises: BadInputError, UnsupportedError, AccessError.
    """
    side_files = Folder(root)
    layout = find_layout(side_files.names, side_files.json(INDEX))
    config = read_config(side_files)
    form = None if is_kept(config) else read_format(config)
    stored = SafetensorsWeights(root, layout)
    weights: SafetensorsWeights | PackedWeights | SingleExperts | InterleavedExperts
    weights = stored
    if form is not None:
        weights = PackedWeights(form, stored.tensors, stored)
    elif is_fused(config):
        weights = SingleExperts(stored.tensors, stored)
    elif is_interleaved(config):
        weights = InterleavedExperts(stored.tensors, stored)
    return Checkpoint(
        id,
        revision,
        config,
        weights.tensors,
        side_files,
        weights,
        stored.nbytes,
        cached=cached,
        quantized=form.title if form else None,
        readable=READABLE,
    )


def read_config(side_files: Folder) -> dict[str, Any]:
    """Return config.json.

    Raises: BadInputError (missing, invalid).
    """
    config = side_files.json("config.json", CONFIG_LIMIT)
    if config is None:
        raise BadInputError(f"config.json is missing in {show(str(side_files.root))}")
    return config


class SafetensorsWeights:
    """The tensors of one or several safetensors files, mapped and read on demand."""

    def __init__(self, root: Path, layout: Layout) -> None:
        self._files = {name: SafetensorsFile(root, name) for name in layout.files}
        headers = {name: file.header for name, file in self._files.items()}
        self.homes = join_headers(headers, layout)
        self.tensors = all_tensors(headers)
        self.nbytes = sum(file.size for file in self._files.values())

    def raw(self, name: str) -> np.ndarray:
        """Return a read-only view as stored; BF16 comes as uint16."""
        return self._files[self.homes[name]].raw(name)

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        """Return a float32 copy of the given rows only."""
        raw = self.raw(name)
        return to_float32(raw if rows is None else raw[rows], self.tensors[name].dtype)
