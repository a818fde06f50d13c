"""Reader of one safetensors file: 8 bytes of header length, a JSON header, then the tensors.

The header of a stranger's file is scanned entry by entry with bounded patterns instead of being
parsed as a whole, so that neither depth nor number nor size of anything in it can hurt. Format:
https://huggingface.co/docs/safetensors#format
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from quantcli.checkpoint.files import open_regular, show
from quantcli.checkpoint.source_tensor import SourceTensor
from quantcli.errors import BadInputError, IntegrityError

HEADER_LIMIT = 32 << 20
TENSOR_LIMIT = 200_000
RANK_LIMIT = 8
DIM_LIMIT = 1 << 40
NAME_LIMIT = 512
METADATA_LIMIT = 10_000
METADATA_ENTRY_LIMIT = 4096

DTYPE_BITS = (
    dict.fromkeys(("F64", "I64", "U64", "C64"), 64)
    | dict.fromkeys(("F32", "I32", "U32"), 32)
    | dict.fromkeys(("F16", "BF16", "I16", "U16"), 16)
    | dict.fromkeys(("I8", "U8", "BOOL"), 8)
    | dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
    | dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6)
    | {"F4": 4}
)
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    # Parts of quantized weights.
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
}

_FIELDS = {"dtype", "shape", "data_offsets"}

# Possessive, hence linear in time and without backtracking.
_BLANK = rb"[ \t\r\n]*+"
_TEXT = rb'[^"\\\x00-\x1f]*+'
_STRING = rb'"%b(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})%b)*+"' % (_TEXT, _TEXT)
_COLON = _BLANK + b":" + _BLANK
_MORE = _BLANK + b"(?:," + _BLANK + b'(?=")|(?=}))'
_OPEN = re.compile(_BLANK + rb"\{" + _BLANK)
_ITEM = re.compile(b"(%b)%b({[^{}]{0,4096}+})%b" % (_STRING, _COLON, _MORE), re.S)
_METADATA = re.compile(b'"__metadata__"%b{%b' % (_COLON, _BLANK))
_METADATA_ITEM = re.compile(b"(%b)%b(%b)%b" % (_STRING, _COLON, _STRING, _MORE), re.S)
_METADATA_END = re.compile(b"}" + _MORE)

_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the weights: run `git lfs pull`"),
    (b"PK\x03\x04", "a ZIP archive (a renamed PyTorch file?), never loaded: it may run code"),
    (b"GGUF", "a GGUF file, not safetensors"),
    (b"\x89HDF", "an HDF5 file, not safetensors"),
    (b"<", "a web page, not safetensors: download it again"),
    (b"{", "bare JSON without the header length, not safetensors"),
)


@dataclass(frozen=True)
class Header:
    """A valid header: the tensors by name, and where the bytes of each begin in the file.

    `metadata` is what `__metadata__` says, but for entries over 4 KiB.
    """

    tensors: dict[str, SourceTensor]
    begins: dict[str, int]
    metadata: dict[str, str]


def header_length(start: bytes, file_size: int, label: str) -> int:
    """Return the length in bytes of the JSON header of a file that begins with `start`.

    Raises: BadInputError, naming other formats that are met under the name safetensors.
    """
    if file_size < 8:
        raise BadInputError(f"{label} is no safetensors file: it has only {file_size} bytes")
    length = int.from_bytes(start[:8], "little")
    if length <= min(HEADER_LIMIT, file_size - 8):
        return length
    for magic, what in _OTHER_FORMATS:
        if start.startswith(magic):
            raise BadInputError(f"{label} is {what}")
    if start[0] == 0x80 and start[1] in range(2, 6):
        raise BadInputError(f"{label} is a Python pickle, never loaded: it may run code")
    if length > HEADER_LIMIT:
        raise BadInputError(
            f"{label} claims a header of {length} bytes; {HEADER_LIMIT} is the limit"
        )
    raise BadInputError(f"{label} ends inside its header of {length} bytes: download it again")


def parse_header(header: bytes, file_size: int, label: str) -> Header:
    """Validate the JSON `header` of a file of `file_size` bytes.

    The tensors must fill the rest of the file: from 0, without hole, overlap or trailing bytes.

    Raises: BadInputError, naming file (`label`), tensor and value.
    """
    tensors: dict[str, SourceTensor] = {}
    spans: dict[str, tuple[int, int]] = {}
    metadata: dict[str, str] = {}
    for name, entry in _scan(header, metadata, label):
        if name in spans:
            raise BadInputError(f"{label} describes the tensor {show(name)} twice")
        if len(spans) == TENSOR_LIMIT:
            raise BadInputError(f"{label} holds more than {TENSOR_LIMIT} tensors")
        try:
            tensors[name], spans[name] = _tensor(name, entry)
        except ValueError as error:
            raise BadInputError(f"{label}: tensor {show(name)} {error}") from error
    if not tensors:
        raise BadInputError(f"{label} holds no tensors")
    data_start = 8 + len(header)
    _check_spans(spans, file_size - data_start, label)
    begins = {name: data_start + begin for name, (begin, _) in spans.items()}
    return Header(tensors, begins, metadata)


def _scan(
    header: bytes, metadata: dict[str, str], label: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and description of each tensor; fill `metadata`."""
    at = 0
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    try:
        at = _end(_OPEN.match(header), "is not a JSON object")
        while header[at : at + 1] != b"}":
            item = _ITEM.match(header, at)
            if item is None or item[1] == b'"__metadata__"':
                at = _read_metadata(header, at, metadata)
            elif len(item[1]) > NAME_LIMIT:
                raise ValueError(f"has a name over {NAME_LIMIT} bytes")
            else:
                name = item[1].decode()
                # Most names need no unescaping, and this is the hot loop.
                name = decoder.decode(name) if "\\" in name else name[1:-1]
                yield name, decoder.decode(item[2].decode())
                at = item.end()
        if header[at + 1 :].strip(b" \t\r\n"):
            raise ValueError("goes on after its end")
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadInputError(f"{label}: the header is not valid JSON near byte {8 + at}") from error
    except UnicodeDecodeError as error:
        raise BadInputError(f"{label}: the header is not UTF-8 near byte {8 + at}") from error
    except ValueError as error:
        raise BadInputError(f"{label}: the header {error}, near byte {8 + at}") from error


def _end(match: re.Match[bytes] | None, otherwise: str) -> int:
    if match is None:
        raise ValueError(otherwise)
    return match.end()


def _read_metadata(header: bytes, at: int, metadata: dict[str, str]) -> int:
    """Return where the `__metadata__` that begins at `at` ends; fill `metadata`."""
    at = _end(_METADATA.match(header, at), "is not valid JSON or describes a tensor by no object")
    count = 0
    while header[at : at + 1] != b"}":
        start = at
        item = _METADATA_ITEM.match(header, at)
        at = _end(item, "has a `__metadata__` that is no object of strings")
        text = header[start:at].decode()
        if item is not None and len(text) <= METADATA_ENTRY_LIMIT:
            metadata[json.loads(item[1])] = json.loads(item[2])
        count += 1
        if count > METADATA_LIMIT:
            raise ValueError(f"has over {METADATA_LIMIT} `__metadata__` entries")
    return _end(_METADATA_END.match(header, at), "is not valid JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(result := dict(pairs)) != len(pairs):
        raise ValueError("duplicate key")
    return result


def _tensor(name: str, entry: dict[str, Any]) -> tuple[SourceTensor, tuple[int, int]]:
    """Check one description; return the tensor and the first and last + 1 of its bytes."""
    if not name or not name.isprintable() or "/" in name or "\\" in name:
        raise ValueError("has a name that is empty, unprintable or a path")
    if entry.keys() != _FIELDS:
        raise ValueError("needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"has the unknown dtype {show(dtype)}")
    if not _are_sizes(shape, DIM_LIMIT) or len(shape) > RANK_LIMIT:
        raise ValueError(
            f"has the shape {show(shape)}: up to {RANK_LIMIT} sizes below 2^40 are allowed"
        )
    if not _are_sizes(offsets, 1 << 63) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"has the data_offsets {show(offsets)}")
    begin, end = offsets
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (end - begin):
        raise ValueError(f"is {dtype} {shape} and needs {-(-bits // 8)} bytes, not {end - begin}")
    return SourceTensor(name, dtype, tuple(shape), end - begin), (begin, end)


def _are_sizes(values: object, limit: int) -> bool:
    if not isinstance(values, list):
        return False
    for value in values:  # noqa: SIM110 (a generator would double the time of this hot loop)
        if type(value) is not int or not 0 <= value < limit:
            return False
    return True


def _check_spans(spans: dict[str, tuple[int, int]], size: int, label: str) -> None:
    position = 0
    for name, (begin, end) in sorted(spans.items(), key=lambda item: item[1]):
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "follows a hole"
            raise BadInputError(f"{label}: tensor {show(name)} {what} at byte {begin} of the data")
        position = end
    if position > size:
        raise BadInputError(f"{label} is {position - size} bytes short: download it again")
    if position < size:
        raise BadInputError(f"{label} has {size - position} bytes after the last tensor")


class SafetensorsFile:
    """One validated file, of which each tensor is mapped anew when it is asked for.

    In between nothing is open or mapped, in no process: a removed file frees its disk.
    Raises: BadInputError, AccessError when opening.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        label = show(name)
        with open_regular(folder, name) as file:
            self._identity = _identity(file)
            self.size = file.seek(0, 2)
            file.seek(0)
            start = file.read(64)
            length = header_length(start, self.size, label)
            file.seek(8)
            self.header = parse_header(file.read(length), self.size, label)

    def raw(self, name: str) -> np.ndarray:
        """Return a read-only view of a tensor as stored; BF16 and FP8 come as uint16 and uint8.

        Raises: BadInputError (the file is gone), IntegrityError (it is another one by now).
        """
        tensor, begin = self.header.tensors[name], self.header.begins[name]
        dtype = NUMPY_DTYPES[tensor.dtype]
        with open_regular(self._folder, self._name) as file:
            if _identity(file) != self._identity:
                raise IntegrityError(
                    f"{show(self._name)} was replaced or changed while it was read: run again"
                )
            if not tensor.nbytes:
                return np.empty(tensor.shape, dtype)
            return np.memmap(file, dtype, mode="r", offset=begin, shape=tensor.shape)


def from_bytes(tensor: SourceTensor, data: bytes) -> np.ndarray:
    """Return a tensor as `SafetensorsFile.raw` does, given its bytes."""
    return np.frombuffer(data, NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)


def _identity(file: BinaryIO) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Return a float32 copy of stored values, exact for F32, F16 and BF16."""
    if dtype != "BF16":
        return np.array(raw, dtype=np.float32, order="C", subok=False)
    # BF16 is the upper half of a float32.
    bits = np.left_shift(np.asarray(raw), np.uint32(16), dtype=np.uint32, order="C")
    return bits.view(np.float32)
