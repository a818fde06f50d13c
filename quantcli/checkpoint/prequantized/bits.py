"""Codes of 1 to 8 bits out of 32-bit words: a little-endian bit stream, code i at bit i * bits.

2, 4 and 8 bits never straddle words; of 3 bits, 32 codes take 3 words.
"""

import numpy as np


def unpack(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Uint8 [..., count]: the first `count` codes of each stream along the last axis (int32)."""
    stream = np.ascontiguousarray(words, "<i4").view(np.uint8)
    short = -stream.shape[-1] % bits
    if short:
        stream = np.pad(stream, [(0, 0)] * (stream.ndim - 1) + [(0, short)])
    octets = stream.reshape(*stream.shape[:-1], -1, bits)  # `bits` bytes hold 8 codes
    eight = np.zeros(octets.shape[:-1], np.uint64)
    for i in range(bits):
        eight |= octets[..., i].astype(np.uint64) << np.uint64(8 * i)
    out = np.empty((*eight.shape, 8), np.uint8)
    for i in range(8):
        out[..., i] = (eight >> np.uint64(bits * i)).astype(np.uint8) & np.uint8((1 << bits) - 1)
    return out.reshape(*stream.shape[:-1], -1)[..., :count]


def take(words: np.ndarray, bits: int, numbers: np.ndarray) -> np.ndarray:
    """Uint8 [..., len(numbers)]: the codes with these numbers, of which there may be few."""
    begins = numbers * bits
    word, shift = begins >> 5, (begins & 31).astype(np.uint64)
    stream = np.asarray(words).view(np.uint32)
    following = np.minimum(word + 1, stream.shape[-1] - 1)  # of the last word nothing straddles
    pair = stream[..., word] | stream[..., following].astype(np.uint64) << np.uint64(32)
    return (pair >> shift).astype(np.uint8) & np.uint8((1 << bits) - 1)
