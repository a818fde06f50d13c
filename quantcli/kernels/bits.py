"""Bit fields of codes, eight at a time: uint8 arrays whose last axis is a multiple of 8 long.

Fields of records are moved as *units* u8[U, 4 R], four bytes at a time, see quantcli.kernels.
"""

import numpy as np

from quantcli.kernels import scratch

ONES = 0x0101010101010101
PLACES = np.arange(0, 32, 4, dtype=np.uint32)[:, None]  # of the bits of unit u in fifth_bits


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
    # An assignment would run along the records' few words, a ufunc runs along its input's rows.
    np.positive(words, out=_words(records, name).T)


def load(records: np.ndarray, name: str) -> np.ndarray:
    """The inverse of store: units u8[U, 4 R]."""
    words = _words(records, name)
    units = scratch.empty(words.shape[::-1], np.uint32)
    units[...] = words.T
    return units.view(np.uint8)


def _words(records: np.ndarray, name: str) -> np.ndarray:
    """View u32[R, n] of a field of records [R]."""
    fields = records.dtype.fields
    if fields is None:
        raise TypeError(f"records of {records.dtype} have no fields")
    dtype, offset = fields[name][:2]
    return records.getfield(np.dtype((np.uint32, dtype.itemsize // 4)), offset)


def fifth_bits(codes: np.ndarray) -> np.ndarray:
    """Units u8[8, 4 R] -> u32[R], bit j is bit 4 of code j, as in Q5_0 and Q5_1."""
    words = codes.view(np.uint32) & np.uint32(0x10101010)
    words *= np.uint32(0x01020408)  # moves the bits of four bytes to bits 28-31
    words >>= 28 - PLACES
    words &= np.uint32(15) << PLACES
    return np.bitwise_or.reduce(words, axis=0)


def from_fifth_bits(packed: np.ndarray) -> np.ndarray:
    """The inverse of fifth_bits: units u8[8, 4 R] of 0 or 16."""
    words = np.right_shift(packed, PLACES, out=scratch.empty((8, len(packed)), np.uint32))
    words &= np.uint32(15)
    words *= np.uint32(0x02040810)
    words &= np.uint32(0x10101010)
    return words.view(np.uint8)


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
