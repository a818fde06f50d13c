"""Cards: one model file with the facts that people compare on model cards."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantcli.evaluation import Quality
from quantcli.gguf_file import Header, read_split
from quantcli.planning.ram import running
from quantcli.recipes import FILE_TYPES
from quantcli.report.model import Output

CHUNK = 1 << 20


@dataclass(frozen=True)
class Card:
    """One model; None for what only a GGUF file has."""

    path: str
    file_type: str | None = None
    size_bytes: int | None = None
    bpw: float | None = None
    ram_bytes: int | None = None  # with 8192 tokens of context, or the model's limit
    sha256: str | None = None
    quality: Quality | None = None

    @property
    def note(self) -> str:
        """What the file type is good for, in plain words."""
        return FILE_TYPES[self.file_type].note if self.file_type in FILE_TYPES else ""


def card_of_output(output: Output) -> Card:
    """The card of a model that was just written."""
    return Card(
        path=output.paths[0],
        file_type=output.file_type,
        size_bytes=output.size_bytes,
        bpw=output.bpw,
        ram_bytes=output.ram_bytes,
        sha256=output.sha256[0],
        quality=output.quality,
    )


def card_of_source(source: str, quality: Quality | None) -> Card:
    """The card of a GGUF file, or of a checkpoint, of which only the name is told.

    Raises:
        BadInputError, AccessError: as read_split.
    """
    path = Path(source)
    if path.suffix != ".gguf" or path.is_dir():
        return Card(source, quality=quality)
    header = read_split(path)
    files = sorted({entry.path for entry in header.tensors.values()} | {path})
    size = sum(file.stat().st_size for file in files)
    weights = sum(math.prod(entry.shape) for entry in header.tensors.values())
    data = sum(entry.nbytes for entry in header.tensors.values())
    return Card(
        path=source,
        file_type=_file_type(header),
        size_bytes=size,
        bpw=8 * data / weights if weights else 0.0,
        ram_bytes=ram_bytes(dict(header.metadata), size),
        sha256=_sha256(path) if len(files) == 1 else None,
        quality=quality,
    )


def ram_bytes(metadata: dict[str, Any], size_bytes: int) -> int:
    """Memory to run a model of that size with the usual context."""
    return size_bytes + running(metadata).overhead


def _file_type(header: Header) -> str | None:
    number = header.metadata.get("general.file_type")
    return next((kind.name for kind in FILE_TYPES.values() if kind.id == number), None)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
