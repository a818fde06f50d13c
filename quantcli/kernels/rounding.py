"""Rounding: to fp16 values, to codes, and reciprocals that are 0 for 0."""

from collections.abc import Callable

import numpy as np

from quantcli.kernels import scratch

try:  # np.clip without its three microseconds of Python
    from numpy._core.umath import clip  # type: ignore[attr-defined]
except ImportError:
    from numpy import clip

F16_MAX = 65504.0
F16_MIN_NORMAL = 2.0**-14  # below, fp16 is a grid of step 2**-24
INFINITE_HALF = 0x7C00
KEPT = np.int32(-0x70002000)  # 0x8FFFE000
SIGN, EXPONENT = np.uint32(0x80000000), np.uint32(0x7F800000)


def as_bits(mask: np.ndarray) -> np.ndarray:
    """int32 of all ones where mask, else 0: what select takes."""
    bits = mask.view(np.int8).astype(np.int32)
    return np.negative(bits, out=bits)


def select(bits: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 a where bits else b; numpy's where takes one element at a time."""
    chosen = a.view(np.int32) ^ b.view(np.int32)
    chosen &= bits
    chosen ^= b.view(np.int32)
    return chosen.view(np.float32)


def to_half(x: np.ndarray) -> np.ndarray:
    """Nearest fp16 values (half to even) as float32, saturating at +-65504; no NaNs.

    Four times as fast as numpy's casts, and those take 70 ns for a subnormal on top.
    """
    magic, half = _onto_half_grid(x)
    half -= magic
    bits = half.view(np.uint32)
    bits |= x.view(np.uint32) & SIGN
    return half


def half_bits(x: np.ndarray) -> np.ndarray:
    """The values of to_half as float16."""
    bits = _onto_half_grid(x)[1].view(np.uint32)
    # The lowest bits count fp16's units within a binade, with fp16's implicit one: a carry that
    # adds to the exponent.
    bits += bits >> np.uint32(13)
    bits += np.uint32(0x800)
    bits |= (x.view(np.uint32) & SIGN) >> np.uint32(16)
    return bits.astype(np.uint16).view(np.float16)


def from_half(x: np.ndarray) -> np.ndarray:
    """float16 as float32, in a third of the time of numpy's cast."""
    if np.bitwise_and(x.view(np.uint16), np.uint16(0x7FFF)).max(initial=0) >= INFINITE_HALF:
        return x.astype(np.float32)
    bits = scratch.empty(x.shape, np.int32)
    bits[...] = x.view(np.int16)
    bits <<= np.int32(13)
    bits &= KEPT  # of the four copies of the sign the first
    values = bits.view(np.float32)
    values *= np.float32(2.0**112)  # from float32's exponents to fp16's; also of subnormals
    return values


def _onto_half_grid(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(magic, |x| + magic): magic is so large that the sum ends where fp16 ends for |x|."""
    size = np.abs(x)
    clip(size, np.float32(0), np.float32(F16_MAX), out=size)
    magic = (size.view(np.uint32) & EXPONENT).view(np.float32)
    magic *= np.float32(2**13)
    # Subnormals, too, are multiples of 2**-24.
    clip(magic, np.float32(0.5), np.float32(2**29), out=magic)
    size += magic
    return magic, size


def to_half_scale(x: np.ndarray) -> np.ndarray:
    """Like to_half, but subnormals round away from zero.

    For the d that integer scales multiply: a d that is too small by a third would clip the largest
    scale, and a d of zero would lose the block; a d that is too large only wastes integers.
    """
    small = np.abs(x) < np.float32(F16_MIN_NORMAL)
    rounded = to_half(x)
    if small.any():
        up = np.ceil(np.abs(x) * np.float32(2**24)) * np.float32(2**-24)
        rounded = select(as_bits(small), np.copysign(up, x, out=up), rounded)
    return rounded


def reciprocal(x: np.ndarray) -> np.ndarray:
    """1/x, and 0 where x is 0 or so small that 1/x is not finite."""
    useless = np.less(np.abs(x), np.float32(2.0**-126)).astype(np.float32)
    return (np.float32(1) - useless) / (x + useless)


def signed_extreme(x: np.ndarray) -> np.ndarray:
    """The value of largest magnitude along axis 0, the first one of two opposite ones (as ggml)."""
    high, low = np.maximum.reduce(x, axis=0), np.minimum.reduce(x, axis=0)
    return first_extreme(high, low, lambda tied: x[:, tied])


def first_extreme(
    high: np.ndarray, low: np.ndarray, weights_of: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The larger in magnitude of high and low; of equals the first in weights_of(mask) [n, k]."""
    balance = high + low
    extreme = np.maximum(high, -low)
    tied = (balance == 0) & (extreme > 0)
    signed = extreme.view(np.uint32)
    signed |= balance.view(np.uint32) & SIGN  # numpy's copysign takes one element at a time
    if tied.any():
        candidates = weights_of(tied)
        first = np.abs(candidates).argmax(axis=0)
        extreme[tied] = np.take_along_axis(candidates, first[None], axis=0)[0]
    extreme += np.float32(0)  # +0 for a block of zeros
    return extreme


def nearest(
    x: np.ndarray, inverse: np.ndarray, shift: np.ndarray | None, lo: int, hi: int, out: np.ndarray
) -> np.ndarray:
    """out = clip(rint((x + shift) * inverse), lo, hi), half to even as ggml's K types."""
    if shift is None:
        np.multiply(x, inverse, out=out)
    else:
        np.add(x, shift, out=out)
        np.multiply(out, inverse, out=out)
    np.rint(out, out=out)
    return clip(out, np.float32(lo), np.float32(hi), out=out)


def small_up(x: np.ndarray, lo: int, hi: int) -> np.ndarray:
    """Integer scales lo..hi near x, of which small ones are rather larger than smaller than wanted.

    Too large a scale is too coarse, but too small a one clips. It matters where the scales of a
    super-block are small because one sub-block of it holds an outlier.
    """
    size = x * x
    size += np.float32(0.5)
    np.sqrt(size, out=size)
    np.copysign(size, x, out=size)
    np.rint(size, out=size)
    return clip(size, np.float32(lo), np.float32(hi), out=size)
