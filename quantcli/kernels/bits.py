"""Bit fields of codes, eight at a time: uint8 arrays whose last axis is a multiple of 8 long."""

import numpy as np

ONES = 0x0101010101010101


def field(codes: np.ndarray, shift: int, bits: int) -> np.ndarray:
    """(codes >> shift) & (2**bits - 1), element by element."""
    words = np.right_shift(codes.view(np.uint64), np.uint64(shift))
    words &= np.uint64(ONES * ((1 << bits) - 1))
    return words.view(np.uint8)


def merge(codes: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """Sum of codes[i] << (i * bits) along `axis`; codes are below 2**bits."""
    planes = np.moveaxis(codes.view(np.uint64), axis, 0)
    merged = planes[-1].copy()
    for plane in planes[-2::-1]:
        merged <<= np.uint64(bits)
        merged |= plane
    return merged.view(np.uint8)


def split(merged: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """The inverse of merge: a new axis of 8 // bits fields."""
    words = np.ascontiguousarray(merged).view(np.uint64)
    count = 8 // bits
    out = np.empty((*words.shape[:axis], count, *words.shape[axis:]), np.uint64)
    mask = np.uint64(ONES * ((1 << bits) - 1))
    for i, plane in enumerate(np.moveaxis(out, axis, 0)):
        np.right_shift(words, np.uint64(i * bits), out=plane)
        plane &= mask
    return out.view(np.uint8)


def nibbles_and_fifth(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """5-bit codes u8[32, 1, R] -> qh u8[R, 4], qs u8[R, 16], as in Q5_0 and Q5_1."""
    high = merge(field(codes, 4, 1).reshape(4, 8, -1), 1, bits=1)
    return high.T, merge(field(codes, 0, 4).reshape(2, 16, -1), 0, bits=4).T


def from_nibbles_and_fifth(qh: np.ndarray, qs: np.ndarray) -> np.ndarray:
    """The inverse of nibbles_and_fifth."""
    codes = split(qs.T, 0, bits=4).reshape(32, 1, -1)
    codes |= split(qh.T, 1, bits=1).reshape(32, 1, -1) << np.uint8(4)
    return codes


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
