"""Strict, bounded reader of GGUF headers (version 2 and 3, little-endian).

Nothing in the file is believed before it is checked against the bytes that are left and against
the limits below, which together keep any header under 2 s and 256 MB.
"""

import mmap
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from quantcli.errors import AccessError, BadInputError, UnsupportedError
from quantcli.gguf_file.layout import (
    ARRAY,
    BOOL,
    GGML_TYPES,
    MAGIC,
    SCALARS,
    STRING,
    Metadata,
    Slot,
    Value,
    alignment_of,
    padded,
)

MAX_HEADER_BYTES = 32 << 20  # the largest vocabularies need about 16 MiB
MAX_KEYS = 1 << 16
MAX_KEY_BYTES = (1 << 16) - 1
MAX_TENSORS = 1 << 16
MAX_STRING_BYTES = 16 << 20
MAX_ARRAY = 4 << 20
MAX_STRINGS = 3 << 19  # over all arrays: each costs some 64 bytes however short it is
MAX_DIMS = 4
MAX_NAME_BYTES = 63


@dataclass(frozen=True)
class TensorEntry(Slot):
    """A tensor in a file: `nbytes` bytes from the absolute `offset` of `path`."""

    offset: int
    path: Path


@dataclass(frozen=True)
class Header:
    """What a GGUF file says before its tensor data; tensors in file order.

    `files` is the file itself, or all shards of the model.
    """

    version: int
    metadata: Metadata
    tensors: dict[str, TensorEntry]
    alignment: int
    data_start: int
    files: tuple[Path, ...]


class HeaderCutError(BadInputError):
    """The header goes on beyond the bytes that are there, of a larger file."""


def read_header(path: Path) -> Header:
    """Header of the GGUF file `path`; of a split model, of this shard alone.

    Raises AccessError (missing, not readable), UnsupportedError (version, byte order or tensor
    type), BadInputError (anything else that is wrong).
    """
    with open_regular(path) as fd:
        size = os.fstat(fd).st_size
        if size < 24:
            raise BadInputError(f"{path}: {size} bytes are too few for a GGUF file")
        with mmap.mmap(fd, min(size, MAX_HEADER_BYTES), access=mmap.ACCESS_READ) as data:
            return parse_header(data, size, path)


def read_tensor(entry: TensorEntry) -> np.memmap:
    """Raw bytes of one tensor, u8[rows, row_bytes], mapped read-only (no copy)."""
    shape = (entry.nbytes // entry.row_bytes, entry.row_bytes)
    try:
        return np.memmap(entry.path, np.uint8, "r", entry.offset, shape)
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"{entry.path}: cannot map tensor {entry.name!r}; has the file changed? ({error})"
        ) from error


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Descriptor of a regular file, read-only; never blocks on a FIFO or reads a device.

    Raises AccessError (missing, not readable), BadInputError (not a regular file).
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AccessError(f"{path}: cannot open: {reason}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadInputError(f"{path}: not a regular file")
        yield fd
    finally:
        os.close(fd)


def parse_header(data: bytes | mmap.mmap, size: int, path: Path) -> Header:
    """Header from `data`, the first bytes of a file of `size` bytes that errors call `path`.

    Raises like read_header, and HeaderCutError where more bytes may tell more.
    """
    cursor = _Cursor(data, size, path)
    if cursor.take(4) != MAGIC:
        cursor.fail("not a GGUF file (it does not begin with 'GGUF')")
    version = cursor.u32()
    if version not in (2, 3):
        order = "big-endian byte order" if version & 0xFFFF == 0 else f"version {version}"
        raise UnsupportedError(f"{path}: GGUF {order} is not supported, only little-endian 2 and 3")
    n_tensors, n_keys = cursor.u64(), cursor.u64()
    # The smallest tensor takes 25 bytes (one-letter name, no axes), the smallest key 14.
    cursor.check_count("tensors", n_tensors, 25, MAX_TENSORS)
    cursor.check_count("metadata keys", n_keys, 14, MAX_KEYS)
    metadata = _parse_metadata(cursor, n_keys)
    try:
        alignment = alignment_of(metadata)
    except BadInputError as error:
        cursor.fail(str(error))
    found = [_parse_tensor(cursor) for _ in range(n_tensors)]
    data_start = padded(cursor.pos, alignment)
    tensors: dict[str, TensorEntry] = {}
    end = data_start
    for slot, offset in found:
        if slot.name in tensors:
            cursor.fail(f"tensor {slot.name!r} appears twice")
        if data_start + offset != end:
            cursor.fail(f"tensor {slot.name!r}: offset {offset}, expected {end - data_start}")
        if end + slot.nbytes > size:
            cursor.fail(
                f"tensor {slot.name!r} ends at byte {end + slot.nbytes} but the file at {size}; "
                "truncated? fetch it again"
            )
        tensors[slot.name] = TensorEntry(slot.name, slot.shape, slot.type_id, end, path)
        end = padded(end + slot.nbytes, alignment)
    return Header(version, metadata, tensors, alignment, data_start, (path,))


class _Cursor:
    """Bounded reads, front to back."""

    def __init__(self, data: bytes | mmap.mmap, size: int, path: Path) -> None:
        self.data, self.size, self.path = data, size, path
        self.pos, self.end = 0, min(len(data), MAX_HEADER_BYTES)
        self.strings_left = MAX_STRINGS

    def fail(self, why: str) -> NoReturn:
        raise BadInputError(f"{self.path}: {why}")

    def take(self, n: int) -> bytes:
        start, self.pos = self.pos, self.pos + n
        if self.pos > self.end:
            if self.end < min(self.size, MAX_HEADER_BYTES):
                raise HeaderCutError(f"{self.path}: the header is cut off at byte {self.end}")
            if self.size > self.end:
                self.fail(f"header longer than {MAX_HEADER_BYTES} bytes")
            self.fail(f"truncated: the header goes on beyond the last byte ({self.size})")
        return self.data[start : self.pos]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def check_count(self, what: str, n: int, smallest: int, limit: int) -> None:
        if n > limit:
            self.fail(f"{n} {what} are more than the limit of {limit}")
        if n * smallest > self.size - self.pos:
            self.fail(f"{n} {what} do not fit into the {self.size - self.pos} bytes left")

    def string(self, limit: int) -> str:
        length = self.u64()
        if length > limit:
            self.fail(f"text of {length} bytes at byte {self.pos}, the limit is {limit}")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"text that ends at byte {self.pos} is not UTF-8")

    def strings(self, n: int) -> list[str]:
        """`n` texts in one tight loop (vocabularies are long); `string` reports any fault."""
        out: list[str] = []
        data, end, longest = self.data, self.end, MAX_STRING_BYTES
        for _ in range(n):
            start = self.pos + 8
            stop = start + int.from_bytes(data[self.pos : start], "little")
            if stop > end or stop - start > longest:
                self.string(longest)
            try:
                out.append(data[start:stop].decode())
            except UnicodeDecodeError:
                self.string(longest)
            self.pos = stop
        return out

    def name(self, what: str, limit: int) -> str:
        name = self.string(limit)
        if not name or not name.isprintable():
            self.fail(f"{what} {name!r:.80} is empty or holds control characters")
        return name


def _parse_metadata(cursor: _Cursor, n_keys: int) -> dict[str, Value]:
    metadata: dict[str, Value] = {}
    for _ in range(n_keys):
        key = cursor.name("metadata key", MAX_KEY_BYTES)
        if key in metadata:
            cursor.fail(f"metadata key {key!r:.80} appears twice")
        metadata[key] = _parse_value(cursor, key)
    return metadata


def _parse_value(cursor: _Cursor, key: str) -> Value:
    value_type = cursor.u32()
    if value_type == STRING:
        return cursor.string(MAX_STRING_BYTES)
    if value_type == ARRAY:
        return _parse_array(cursor, key)
    if value_type not in SCALARS:
        cursor.fail(f"metadata {key!r:.80}: unknown value type {value_type}")
    values = _parse_scalars(cursor, key, value_type, 1)
    return bool(values[0]) if value_type == BOOL else values[0]


def _parse_array(cursor: _Cursor, key: str) -> np.ndarray | list[str]:
    item_type, n = cursor.u32(), cursor.u64()
    if item_type == ARRAY:
        cursor.fail(f"metadata {key!r:.80}: an array of arrays")
    if item_type != STRING and item_type not in SCALARS:
        cursor.fail(f"metadata {key!r:.80}: unknown value type {item_type}")
    smallest = 8 if item_type == STRING else SCALARS[item_type].itemsize
    cursor.check_count(f"items of {key!r:.80}", n, smallest, MAX_ARRAY)
    if item_type != STRING:
        return _parse_scalars(cursor, key, item_type, n)
    cursor.strings_left -= n
    if cursor.strings_left < 0:
        cursor.fail(f"metadata {key!r:.80}: more than {MAX_STRINGS} texts in arrays")
    return cursor.strings(n)


def _parse_scalars(cursor: _Cursor, key: str, value_type: int, n: int) -> np.ndarray:
    dtype = SCALARS[value_type]
    data = cursor.take(n * dtype.itemsize)
    if value_type == BOOL and data.strip(b"\0\1"):
        cursor.fail(f"metadata {key!r:.80}: a bool is neither 0 nor 1")
    return np.frombuffer(data, dtype)


def _parse_tensor(cursor: _Cursor) -> tuple[Slot, int]:
    """One tensor info and its offset in the tensor data."""
    name = cursor.name("tensor name", MAX_NAME_BYTES)
    n_dims = cursor.u32()
    if n_dims > MAX_DIMS:
        cursor.fail(f"tensor {name!r}: {n_dims} axes, at most {MAX_DIMS} are allowed")
    shape = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims))[::-1]
    type_id, offset = cursor.u32(), cursor.u64()
    if type_id not in GGML_TYPES:
        raise UnsupportedError(f"{cursor.path}: tensor {name!r}: unknown ggml type {type_id}")
    if 0 in shape:
        cursor.fail(f"tensor {name!r}: an axis of length 0 in shape {shape}")
    ggml_type = GGML_TYPES[type_id]
    if (shape[-1] if shape else 1) % ggml_type.block:
        cursor.fail(
            f"tensor {name!r}: shape {shape} cannot be {ggml_type.name}, "
            f"whose rows are multiples of {ggml_type.block}"
        )
    return Slot(name, shape, type_id), offset
