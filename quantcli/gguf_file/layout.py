"""What a GGUF file looks like, and the bytes of its header.

    "GGUF" | u32 version | u64 n_tensors | u64 n_kv
    n_kv      x   string key  | u32 value type | value    (array: u32 type | u64 n | n values)
    n_tensors x   string name | u32 n_dims | u64 ne[n_dims] | u32 tensor type | u64 offset
    padding to the alignment | tensor data, each tensor padded to the alignment

Little-endian; a string is u64 length + UTF-8. `ne` has the fastest axis first, `shape` in this
package is numpy order. Offsets count from the start of the tensor data. Source: ggml's gguf.md.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from quantcli.errors import BadInputError

MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 64 << 10

Value = bool | str | np.generic | np.ndarray | list[str]
Metadata = Mapping[str, Value]

# GGUF value type -> numpy scalar type in little-endian byte order.
SCALARS: dict[int, np.dtype] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
STRING, ARRAY = 8, 9
BOOL = 7
_TYPE_OF = {dtype: value_type for value_type, dtype in SCALARS.items()}


class GgmlType(NamedTuple):
    """One ggml tensor type: `block` elements of a row take `nbytes` bytes."""

    name: str
    block: int
    nbytes: int


# Every type ggml stores in files, by its id (ggml.h, enum ggml_type).
GGML_TYPES = {
    0: GgmlType("F32", 1, 4),
    1: GgmlType("F16", 1, 2),
    2: GgmlType("Q4_0", 32, 18),
    3: GgmlType("Q4_1", 32, 20),
    6: GgmlType("Q5_0", 32, 22),
    7: GgmlType("Q5_1", 32, 24),
    8: GgmlType("Q8_0", 32, 34),
    10: GgmlType("Q2_K", 256, 84),
    11: GgmlType("Q3_K", 256, 110),
    12: GgmlType("Q4_K", 256, 144),
    13: GgmlType("Q5_K", 256, 176),
    14: GgmlType("Q6_K", 256, 210),
    16: GgmlType("IQ2_XXS", 256, 66),
    17: GgmlType("IQ2_XS", 256, 74),
    18: GgmlType("IQ3_XXS", 256, 98),
    19: GgmlType("IQ1_S", 256, 50),
    20: GgmlType("IQ4_NL", 32, 18),
    21: GgmlType("IQ3_S", 256, 110),
    22: GgmlType("IQ2_S", 256, 82),
    23: GgmlType("IQ4_XS", 256, 136),
    24: GgmlType("I8", 1, 1),
    25: GgmlType("I16", 1, 2),
    26: GgmlType("I32", 1, 4),
    27: GgmlType("I64", 1, 8),
    28: GgmlType("F64", 1, 8),
    29: GgmlType("IQ1_M", 256, 56),
    30: GgmlType("BF16", 1, 2),
    34: GgmlType("TQ1_0", 256, 54),
    35: GgmlType("TQ2_0", 256, 66),
    39: GgmlType("MXFP4", 32, 17),
    40: GgmlType("NVFP4", 64, 36),
    41: GgmlType("Q1_0", 128, 18),
    42: GgmlType("Q2_0", 64, 18),
}


@dataclass(frozen=True)
class Slot:
    """The place of one tensor in a file: name, shape in numpy order, ggml type id."""

    name: str
    shape: tuple[int, ...]
    type_id: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the last axis)."""
        ggml_type = GGML_TYPES[self.type_id]
        columns = self.shape[-1] if self.shape else 1
        return columns // ggml_type.block * ggml_type.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without padding."""
        return math.prod(self.shape[:-1]) * self.row_bytes


def padded(n: int, alignment: int) -> int:
    """`n` rounded up to a multiple of `alignment`."""
    return -(-n // alignment) * alignment


def alignment_of(metadata: Metadata) -> int:
    """Alignment of the tensor data in bytes. Raises BadInputError if it is not a sane one."""
    value = metadata.get("general.alignment", np.uint32(DEFAULT_ALIGNMENT))
    if not isinstance(value, np.uint32):
        raise BadInputError("general.alignment is not of type u32")
    alignment = int(value)
    if alignment.bit_count() != 1 or alignment > MAX_ALIGNMENT:
        raise BadInputError(
            f"general.alignment {alignment} is not a power of two up to {MAX_ALIGNMENT}"
        )
    return alignment


def data_bytes(metadata: Metadata, slots: Sequence[Slot]) -> int:
    """Bytes of all tensor data of one file, each tensor padded to the alignment."""
    alignment = alignment_of(metadata)
    return sum(padded(slot.nbytes, alignment) for slot in slots)


def encode_header(metadata: Metadata, slots: Sequence[Slot]) -> bytes:
    """The bytes of a file up to its tensor data, padding included, keys and tensors as given.

    Raises BadInputError for text that has no UTF-8 form, TypeError for a value outside `Value`.
    """
    alignment = alignment_of(metadata)
    out = [MAGIC, struct.pack("<IQQ", VERSION, len(slots), len(metadata))]
    for key, value in metadata.items():
        out += [_string(key, key), _value(key, value)]
    offset = 0
    for slot in slots:
        ne = slot.shape[::-1]
        out.append(_string(slot.name, slot.name))
        out.append(struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, slot.type_id, offset))
        offset += padded(slot.nbytes, alignment)
    header = b"".join(out)
    return header.ljust(padded(len(header), alignment), b"\0")


def _string(key: str, text: str) -> bytes:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        # Half a surrogate pair can enter through "\ud83d" in a JSON file of the checkpoint.
        raise BadInputError(
            f"{key!r:.80}: character {error.start} is half of a surrogate pair, which GGUF "
            "cannot store; correct that text in the checkpoint"
        ) from error
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> bytes:
    """Value type and value of one key; the numpy dtype decides the GGUF type."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(key, value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, list):
        head = struct.pack("<IIQ", ARRAY, STRING, len(value))
        return head + b"".join(_string(key, text) for text in value)
    if isinstance(value, np.ndarray) and value.ndim == 1 and _little(value) in _TYPE_OF:
        head = struct.pack("<IIQ", ARRAY, _TYPE_OF[_little(value)], len(value))
        return head + value.astype(_little(value)).tobytes()
    if isinstance(value, np.generic) and not isinstance(value, np.bool_):
        value_type = _TYPE_OF.get(_little(value))
        if value_type is not None:
            return struct.pack("<I", value_type) + value.astype(_little(value)).tobytes()
    raise TypeError(f"metadata {key!r}: {type(value).__name__} is not a GGUF value")


def _little(value: np.generic | np.ndarray) -> np.dtype:
    return value.dtype.newbyteorder("<")
