"""A GGUF file, or the first of its shards, as a source: its tensors have their final names.

It is here, or on the hub, where "org/name" means the only one that is not quantized and
"org/name:choice" the one of that name or type.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcli.architectures import OutputTensor
from quantcli.checkpoint import Checkpoint, SourceTensor, gguf_choice
from quantcli.checkpoint.files import Folder, show
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.gguf_file import (
    GGML_TYPES,
    MAX_HEADER_BYTES,
    Header,
    HeaderCutError,
    TensorEntry,
    parse_header,
    read_split,
    read_tensor,
    without_number,
)
from quantcli.progress import Progress, Silent
from quantcli.recipes.choose import usual_order
from quantcli.tensor_types import by_id, stored_names

if TYPE_CHECKING:  # the hub's client takes its time to import
    from quantcli.checkpoint.hub_gguf import HubGguf

Metadata = dict[str, Any]
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


HEADER_GUESS = 1 << 20  # bytes of a file on the hub, four times as many where it has more


def is_gguf(source: str) -> bool:
    """Whether a source is meant as a GGUF file on this machine."""
    here = source.endswith(".gguf") and not Path(source).is_dir()
    return here and gguf_choice(source) is None


@dataclass(frozen=True)
class GgufSource:
    """An opened GGUF model; `files` are the names of the tensors of each file, in file order."""

    checkpoint: Checkpoint
    metadata: Metadata  # without what says how it was split
    files: list[list[str]]

    @property
    def architecture(self) -> str:
        """`general.architecture`."""
        return str(self.metadata["general.architecture"])

    @property
    def types(self) -> dict[str, str]:
        """The ggml type of each tensor."""
        return {name: tensor.dtype for name, tensor in self.checkpoint.tensors.items()}

    def origins(self, keep_split: bool) -> list[OutputTensor]:
        """Every tensor as it is, in llama-quantize's order: by block, or else file by file."""
        shapes = {name: tensor.shape for name, tensor in self.checkpoint.tensors.items()}
        order = [name for file in self.files for name in file]
        if not keep_split:
            order = sorted(order, key=usual_order)
        return [OutputTensor(name, shapes[name], source=name) for name in order]


class GgufWeights:
    """The tensors of GGUF files, mapped and decoded on demand; a matrix has rows of its last axis.

    `homes` are the names of the files below `root`.
    """

    def __init__(self, entries: Mapping[str, TensorEntry], root: Path) -> None:
        self.homes = {n: entry.path.relative_to(root).as_posix() for n, entry in entries.items()}
        self._entries = entries

    def raw(self, name: str) -> np.ndarray:
        """Packed rows, u8[rows, row_bytes]."""
        return read_tensor(self._entries[name])

    def float32(self, name: str, rows: slice | np.ndarray | None) -> np.ndarray:
        """Float32 [rows, n] of a matrix, [n] of a vector."""
        entry = self._entries[name]
        packed = read_tensor(entry)
        w = by_id(entry.type_id).decode(np.asarray(packed if rows is None else packed[rows]))
        return w.reshape(-1) if len(entry.shape) < 2 else w


def open_gguf(path: Path) -> GgufSource:
    """Open and validate a GGUF model; reads headers only.

    Raises:
        AccessError, BadInputError: as read_split; for a file without tensors or architecture.
        UnsupportedError: for what is no language model.
    """
    header = read_split(path)
    opened = _opened(header, path.parent)
    id = without_number(path).removesuffix(".gguf")
    return replace(opened, checkpoint=replace(opened.checkpoint, id=id))


def open_hub_gguf(
    repo_id: str,
    choice: str | None,
    revision: str | None,
    *,
    weights: bool,
    check: Callable[["GgufSource"], None],
    progress: Progress | None = None,
) -> GgufSource:
    """The same of a model on the hub; with weights=False only headers are fetched.

    choice: see checkpoint.hub_gguf.choose; check: hears what headers tell before any download.

    Raises: as open_gguf; UsageError (no such file, or several), NetworkError, IntegrityError,
    ResourceError.
    """
    from quantcli.checkpoint.hub_gguf import find_gguf

    found = find_gguf(repo_id, choice, revision)
    first, missing = found.files[0].name, found.missing_bytes
    opened = _opened(read_split(Path(first), partial(_read_begin, found)), Path())
    check(opened)
    checkpoint = replace(opened.checkpoint, weights=None, side_files=Folder(Path(), ()))
    if weights:
        root, cached = found.download(revision, progress or Silent())
        opened = _opened(read_split(root / first), root)
        checkpoint = replace(opened.checkpoint, cached=cached)
    checkpoint = replace(
        checkpoint,
        id=repo_id,
        revision=found.commit,
        source_bytes=found.nbytes,
        missing_bytes=missing,
    )
    return replace(opened, checkpoint=checkpoint)


def fetch_gguf(
    repo_id: str, choice: str | None, revision: str | None, progress: Progress | None
) -> Path:
    """Download a GGUF model of the hub; the path of its first file. Raises: as open_hub_gguf."""
    from quantcli.checkpoint.hub_gguf import find_gguf

    found = find_gguf(repo_id, choice, revision)
    root, _ = found.download(revision, progress or Silent())
    return root / found.files[0].name


def _read_begin(found: "HubGguf", path: Path) -> Header:
    """The header of a file on the hub, from as few of its bytes as tell it."""
    name = path.as_posix()
    size = next((file.size for file in found.files if file.name == name), None)
    if size is None:
        raise BadInputError(f"{found.repo_id} lacks {name!r}")
    count = HEADER_GUESS
    while True:
        try:
            return parse_header(found.begin(name, count), size, path)
        except HeaderCutError:
            count = min(4 * count, MAX_HEADER_BYTES)


def _opened(header: Header, root: Path) -> GgufSource:
    path = header.files[0]
    _check_is_model(path, header.metadata)
    if not header.tensors:
        raise BadInputError(f"{path}: no tensors; is this a vocabulary only?")
    tensors = {
        name: SourceTensor(name, GGML_TYPES[entry.type_id].name, entry.shape, entry.nbytes)
        for name, entry in header.tensors.items()
    }
    weights = GgufWeights(header.tensors, root)
    checkpoint = Checkpoint(
        id="",
        revision=None,
        config={},
        tensors=tensors,
        side_files=Folder(root, tuple(f.relative_to(root).as_posix() for f in header.files)),
        weights=weights,
        source_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        readable=stored_names(),
    )
    files = [[n for n, entry in header.tensors.items() if entry.path == f] for f in header.files]
    metadata = {key: v for key, v in header.metadata.items() if key not in SPLIT_KEYS}
    return GgufSource(checkpoint, metadata, files)


def _check_is_model(path: Path, metadata: Mapping[str, Any]) -> None:
    kind = metadata.get("general.type", "model")
    architecture = metadata.get("general.architecture")
    if kind != "model" or architecture == "clip":
        raise UnsupportedError(
            f"{path}: general.type {show(kind)} is not a language model: use the file as it is"
        )
    if not isinstance(architecture, str) or not architecture.isprintable() or not architecture:
        raise BadInputError(f"{path}: general.architecture is {show(architecture)}, not a name")
