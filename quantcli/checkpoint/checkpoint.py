"""What every source becomes: a configuration, tensors read on demand, and side files."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.checkpoint.files import JSON_LIMIT, SIDE_FILE_LIMIT, Folder, show
from quantcli.checkpoint.source_tensor import WEIGHT_DTYPES, SourceTensor, Weights
from quantcli.errors import BadInputError, UnsupportedError

if TYPE_CHECKING:
    from quantcli.checkpoint.cached_weights import CachedWeights
    from quantcli.checkpoint.hub_stream import HubStream


@dataclass(frozen=True)
class Checkpoint:
    """An opened and validated source.

    `id` is a name without path (a hub id or the name of the folder), `revision` the commit on the
    hub or None, `config` the content of config.json, `weights` None if only headers were fetched.
    `source_bytes` is the size of all weight files, `missing_bytes` of those still to be downloaded
    when it was opened. `cached` are the files if they are in the hub's cache, in which it keeps
    other runs from removing them. `quantized` names the format of weights that were quantized
    before; these are seen as F32. `readable` are the dtypes whose values can be read. `stream`
    brings the weights where they are stored nowhere.
    """

    id: str
    revision: str | None
    config: dict[str, Any]
    tensors: Mapping[str, SourceTensor]
    side_files: Folder
    weights: Weights | None
    source_bytes: int
    missing_bytes: int = 0
    cached: "CachedWeights | None" = None
    quantized: str | None = None
    readable: Collection[str] = WEIGHT_DTYPES
    stream: "HubStream | None" = None

    @property
    def has_weights(self) -> bool:
        return self.weights is not None

    @property
    def source_files(self) -> tuple[str, ...]:
        """Names of the files at hand, those in `additional_chat_templates/` included."""
        return self.side_files.names

    def file(self, name: str, limit: int = SIDE_FILE_LIMIT) -> bytes | None:
        """Return the content of a side file such as tokenizer.json, None when there is none.

        Raises: BadInputError (over `limit` bytes, not a regular file), AccessError.
        """
        return self.side_files.read(name, limit)

    def json(self, name: str, limit: int = JSON_LIMIT) -> dict[str, Any] | None:
        """Return a side file that holds one JSON object, None when there is none.

        Raises: BadInputError (invalid, duplicate keys, too deep, too large), AccessError.
        """
        return self.side_files.json(name, limit)

    def weight(self, name: str) -> SourceTensor:
        """Return the tensor `name` if its values can be read: to be asked while planning.

        Raises: BadInputError (no such tensor), UnsupportedError (a dtype that is not `readable`).
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise BadInputError(f"{show(self.id)} lacks the tensor {show(name)}")
        if tensor.dtype not in self.readable:
            hint = "" if tensor.dtype in ("F64", "C64") else "; is this a quantized checkpoint?"
            raise UnsupportedError(
                f"tensor {show(name)}: {tensor.dtype} is not supported as a weight"
                f" (only {', '.join(self.readable)} are){hint}"
            )
        return tensor

    def raw(self, name: str) -> np.ndarray:
        """Return a read-only view of a tensor as stored; nothing is read yet.

        It is uint16 for BF16 of safetensors, packed rows uint8 [rows, bytes] for all of GGUF.

        Raises: as `weight`.
        """
        return self._opened(name).raw(name)

    def float32(self, name: str, rows: slice | np.ndarray | None = None) -> np.ndarray:
        """Return a float32 copy of the given rows (first axis; None: all), exact for every dtype.

        Raises: as `weight`.
        """
        return self._opened(name).float32(name, rows)

    def _opened(self, name: str) -> Weights:
        self.weight(name)
        if self.weights is None:
            raise RuntimeError(f"{self.id} was opened for planning, without weights")
        return self.weights
