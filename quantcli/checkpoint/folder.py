"""A local folder as a source: config.json, safetensors weights, side files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.checkpoint.checkpoint import Checkpoint
from quantcli.checkpoint.files import Folder, show
from quantcli.checkpoint.layout import INDEX, Layout, all_tensors, find_layout, join_headers
from quantcli.checkpoint.safetensors import SafetensorsFile, to_float32
from quantcli.errors import BadInputError, UnsupportedError

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
    weights = SafetensorsWeights(root, layout)
    tensors, nbytes = weights.tensors, weights.nbytes
    return Checkpoint(id, revision, config, tensors, side_files, weights, nbytes, cached=cached)


def read_config(side_files: Folder) -> dict[str, Any]:
    """Return config.json, refusing what announces itself as already quantized.

    Raises: BadInputError (missing, invalid), UnsupportedError (naming the method).
    """
    config = side_files.json("config.json", CONFIG_LIMIT)
    if config is None:
        raise BadInputError(f"config.json is missing in {show(str(side_files.root))}")
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            if part.get(key):
                raise UnsupportedError(
                    f"the checkpoint is already quantized ({key} in config.json:"
                    f" {_quantization_method(part[key])}): give the original instead"
                )
    return config


def _quantization_method(settings: object) -> str:
    if not isinstance(settings, dict):
        return show(settings)
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return show(settings.get("quant_method", settings.get("mode", "method not named"))).strip("'")


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
