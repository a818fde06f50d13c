"""Cards: one model file with the facts that people compare on model cards."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantcli.errors import BadInputError
from quantcli.evaluation import Quality, Similarity
from quantcli.gguf_file import Header, read_split
from quantcli.gguf_source import is_gguf
from quantcli.planning.ram import running
from quantcli.recipes import FILE_TYPES
from quantcli.report.model import Output

CHUNK = 1 << 20
CARD_FILES = ("README.md", "Modelfile")  # what `--card` writes beside the outputs


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
    method: str | None = None
    shards: tuple[tuple[str, str], ...] = ()  # path and sha256 of each, if there are several
    similarity: Similarity | None = None  # of a model that embeds, in place of quality

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
        method=output.method,
        shards=_several(list(zip(output.paths, output.sha256, strict=True))),
        similarity=output.similarity,
    )


def card_of_entry(entry: Mapping[str, Any]) -> Card:
    """The card of a model that was written earlier, from its entry in a report's `outputs`.

    Raises:
        BadInputError: when it is no entry that `as_json.report_document` has made.
    """
    try:
        return Card(
            path=entry["path"],
            file_type=entry["file_type"],
            size_bytes=entry["size_bytes"],
            bpw=entry["bpw"],
            ram_bytes=entry["ram_bytes"],
            sha256=entry["sha256"],
            quality=Quality(**entry["quality"]) if entry["quality"] else None,
            method=entry["method"],
            shards=_several([(part["path"], part["sha256"]) for part in entry.get("shards", [])]),
            similarity=Similarity(**entry["similarity"]) if entry.get("similarity") else None,
        )
    except (KeyError, TypeError) as error:
        raise BadInputError(
            f"not an output of a quantcli report: {error}; make the report again"
        ) from error


def _several(files: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple(files) if len(files) > 1 else ()


def card_of_source(source: str, measured: Quality | Similarity | None) -> Card:
    """The card of a GGUF file, or of a checkpoint, of which only the name is told.

    Raises:
        BadInputError, AccessError: as read_split.
    """
    path = Path(source)
    quality = measured if isinstance(measured, Quality) else None
    similarity = measured if isinstance(measured, Similarity) else None
    if not is_gguf(source):
        return Card(source, quality=quality, similarity=similarity)
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
        similarity=similarity,
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
