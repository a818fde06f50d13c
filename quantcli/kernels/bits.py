"""Bit fields of codes, eight at a time: uint8 arrays whose last axis is a multiple of 8 long.

Fields of records are moved as *units* u8[U, 4 R], four bytes at a time, see quantcli.kernels.
"""

import numpy as np

from quantcli.kernels import scratch

ONES = 0x0101010101010101


def field(codes: np.ndarray, shift: int, bits: int) -> np.ndarray:
    """(codes >> shift) & (2**bits - 1), element by element."""
    out = scratch.empty(codes.shape, np.uint8)
    words = out.view(np.uint64)
    mask = np.uint64(ONES * ((1 << bits) - 1))
    if shift:
        np.right_shift(codes.view(np.uint64), np.uint64(shift), out=words)
        words &= mask
    else:
        np.bitwise_and(codes.view(np.uint64), mask, out=words)
    return out


def merge(codes: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """Sum of codes[i] << (i * bits) along `axis` (0 or 1); codes are below 2**bits."""
    planes = codes.view(np.uint64).swapaxes(0, axis)
    merged = np.left_shift(
        planes[-1], np.uint64(bits), out=scratch.empty(planes[0].shape, np.uint64)
    )
    merged |= planes[-2]
    for plane in planes[-3::-1]:
        merged <<= np.uint64(bits)
        merged |= plane
    return merged.view(np.uint8)


def split(merged: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """The inverse of merge: a new axis (0 or 1) of 8 // bits fields."""
    words = np.ascontiguousarray(merged).view(np.uint64)
    count = 8 // bits
    out = scratch.empty((*words.shape[:axis], count, *words.shape[axis:]), np.uint64)
    mask = np.uint64(ONES * ((1 << bits) - 1))
    for i, plane in enumerate(out.swapaxes(0, axis)):
        shift = np.uint64(i * bits)
        np.bitwise_and(words, mask << shift, out=plane)
        if i:
            plane >>= shift
    return out.view(np.uint8)


def add_field(codes: np.ndarray, high: np.ndarray, shift: int) -> None:
    """codes |= high << shift, in place; high is overwritten."""
    words = high.view(np.uint64)
    words <<= np.uint64(shift)
    codes.view(np.uint64)[...] |= words


def store(units: np.ndarray, records: np.ndarray, name: str) -> None:
    """Units u8[..., 4 R] -> field `name` of records [R]."""
    words = units.view(np.uint32).reshape(-1, len(records))
    rows = scratch.empty((len(records), len(words)), np.uint32)
    rows[...] = words.T
    whole = np.dtype((np.void, 4 * len(words)))
    records.getfield(whole, _place(records, name)[1])[...] = rows.view(whole)[:, 0]


def load(records: np.ndarray, name: str) -> np.ndarray:
    """The inverse of store: units u8[U, 4 R]."""
    dtype, offset = _place(records, name)
    rows = scratch.empty((len(records), dtype.itemsize // 4), np.uint32)
    whole = np.dtype((np.void, dtype.itemsize))
    rows.view(whole)[:, 0] = records.getfield(whole, offset)
    units = scratch.empty(rows.shape[::-1], np.uint32)
    units[...] = rows.T
    return units.view(np.uint8)


def _place(records: np.ndarray, name: str) -> tuple[np.dtype, int]:
    """Type and offset of a field."""
    fields = records.dtype.fields
    if fields is None:
        raise TypeError(f"records of {records.dtype} have no fields")
    return fields[name][0], fields[name][1]


def fifth_bits(high: np.ndarray) -> np.ndarray:
    """Units u8[8, 4 R] of zeros and ones -> u32[R], bit j that of weight j, as in Q5_0 and Q5_1."""
    # The multiplication moves the lowest bits of four bytes to bits 28-31.
    nibbles = (high.view(np.uint32) * np.uint32(0x10204080)) >> np.uint32(28)
    packed = nibbles[7]
    for nibble in nibbles[6::-1]:
        packed = packed << np.uint32(4) | nibble
    return packed


def from_fifth_bits(packed: np.ndarray) -> np.ndarray:
    """The inverse of fifth_bits."""
    nibbles = scratch.empty((8, len(packed)), np.uint32)
    for i in range(8):
        np.right_shift(packed, np.uint32(4 * i), out=nibbles[i])
    nibbles &= np.uint32(15)
    nibbles *= np.uint32(0x00204081)
    nibbles &= np.uint32(0x01010101)
    return nibbles.view(np.uint8)


def six_bit_pairs(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """6-bit integers f32[8, R], twice -> u8[R, 12], as in Q4_K and Q5_K.

    Bytes 0-3 and 4-7: scales and mins of sub-blocks 0-3 in bits 0-5, upper two bits of those of
    sub-blocks 4-7 in bits 6-7. Bytes 8-11: | min 4-7 bits 0-3 | scale 4-7 bits 0-3 |.
    """
    s, m = scales.astype(np.uint8), mins.astype(np.uint8)
    packed = np.empty((12, s.shape[1]), np.uint8)
    packed[0:4] = s[:4] | (s[4:] >> 4) << 6
    packed[4:8] = m[:4] | (m[4:] >> 4) << 6
    packed[8:12] = (s[4:] & 15) | (m[4:] & 15) << 4
    return packed.T


def from_six_bit_pairs(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of six_bit_pairs."""
    low, high, rest = np.ascontiguousarray(packed.T).reshape(3, 4, -1)
    scales = np.concatenate([low & 63, (rest & 15) | low >> 6 << 4])
    mins = np.concatenate([high & 63, rest >> 4 | high >> 6 << 4])
    return scales.astype(np.float32), mins.astype(np.float32)
