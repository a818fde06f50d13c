"""Split models: which tensors go to which file, and a set of shards read as one model.

The convention of llama.cpp: `<stem>-00001-of-00009.gguf`; the first shard carries all metadata,
every shard `split.no` (u16), `split.count` (u16) and `split.tensors.count` (i32, of the whole
model); each shard is a GGUF file of its own.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from quantcli.errors import BadInputError, UsageError
from quantcli.gguf_file.layout import Metadata, Slot, Value, alignment_of, encode_header, padded
from quantcli.gguf_file.reader import Header, TensorEntry, parse_header, read_header

MAX_SHARDS = (1 << 16) - 1  # split.count is a u16
_SHARD_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Shard:
    """One file to be written: every byte of its header, the place of every tensor, its size."""

    path: Path
    head: bytes
    tensors: tuple[TensorEntry, ...]
    size: int


def plan_shards(
    path: Path,
    metadata: Metadata,
    slots: Sequence[Slot],
    *,
    max_bytes: int | None = None,
    max_tensors: int | None = None,
    counts: Sequence[int] | None = None,
) -> list[Shard]:
    """The files of a model, one of name `path` if it need not be split.

    counts: how many tensors each file gets, instead of the limits.
    As in llama.cpp's converter, `max_bytes` counts tensor data only, and a tensor above it gets
    a shard of its own. Raises BadInputError for what a strict reader would refuse (a tensor name
    too long, say) and UsageError for more than 65535 shards.
    """
    if counts is None:
        groups = list(_split(slots, max_bytes, max_tensors))
    else:
        rest = iter(slots)
        groups = [list(islice(rest, count)) for count in counts]
    if len(groups) == 1:
        return [_shard(path, metadata, slots)]
    if len(groups) > MAX_SHARDS:
        raise UsageError(f"{path}: {len(groups)} shards are too many; raise the split limit")
    shards = []
    for number, group in enumerate(groups):
        own: dict[str, Value] = {}
        if number == 0:
            own |= metadata
        elif "general.alignment" in metadata:
            own["general.alignment"] = metadata["general.alignment"]
        own["split.no"] = np.uint16(number)
        own["split.count"] = np.uint16(len(groups))
        own["split.tensors.count"] = np.int32(len(slots))
        shards.append(_shard(_shard_path(path, number, len(groups)), own, group))
    return shards


def read_split(path: Path, read: Callable[[Path], Header] = read_header) -> Header:
    """Header of a whole model from its only file or its first shard; entries know their file.

    read: where the header of a file comes from.
    Raises like read_header, and BadInputError if `path` is not the first shard or the set of
    shards is not consistent.
    """
    first = read(path)
    count = _split_number(path, first, "split.count", np.uint16) or 1
    if count == 1:
        return first
    match = _SHARD_NAME.fullmatch(path.name)
    if not match or int(match[2]) != 1 or int(match[3]) != count:
        expected = f"-00001-of-{count:05d}.gguf"
        raise BadInputError(f"{path}: one of {count} shards; give the one named {expected}")
    tensors: dict[str, TensorEntry] = {}
    parts = tuple(_shard_path(path.with_name(match[1]), i, count) for i in range(count))
    for number, part in enumerate(parts):
        header = read(part) if number else first
        if _split_number(part, header, "split.no", np.uint16) != number:
            raise BadInputError(f"{part}: split.no is not {number}; are the shards renamed?")
        for name, entry in header.tensors.items():
            if name in tensors:
                raise BadInputError(f"{part}: tensor {name!r} is also in {tensors[name].path}")
            tensors[name] = entry
    total = _split_number(path, first, "split.tensors.count", np.int32)
    if total != len(tensors):
        raise BadInputError(f"{path}: {total} tensors announced, {len(tensors)} in the shards")
    return replace(first, tensors=tensors, files=parts)


def without_number(path: Path) -> str:
    """The name of a model's file, of a shard without what tells it from the others."""
    match = _SHARD_NAME.fullmatch(path.name)
    return f"{match[1]}.gguf" if match else path.name


def _split(
    slots: Sequence[Slot], max_bytes: int | None, max_tensors: int | None
) -> Iterator[list[Slot]]:
    group: list[Slot] = []
    nbytes = 0
    for slot in slots:
        too_many = max_tensors is not None and len(group) >= max_tensors
        too_big = max_bytes is not None and nbytes + slot.nbytes > max_bytes
        if group and (too_many or too_big):
            yield group
            group, nbytes = [], 0
        group.append(slot)
        nbytes += slot.nbytes
    yield group


def _shard(path: Path, metadata: Metadata, slots: Sequence[Slot]) -> Shard:
    head = encode_header(metadata, slots)
    size = len(head) + sum(padded(slot.nbytes, alignment_of(metadata)) for slot in slots)
    # Offsets come from our own strict reader, so a file it would refuse fails here, at the start.
    header = parse_header(head, size, path)
    return Shard(path, head, tuple(header.tensors.values()), size)


def _shard_path(path: Path, number: int, count: int) -> Path:
    stem = path.name.removesuffix(".gguf")
    return path.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}.gguf")


def _split_number(path: Path, header: Header, key: str, kind: type[np.integer]) -> int | None:
    value = header.metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, kind):
        raise BadInputError(f"{path}: {key} is not of type {kind.__name__}")
    return int(value)
