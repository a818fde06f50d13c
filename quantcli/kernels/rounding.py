"""Rounding: to fp16 values, to codes, and reciprocals that are 0 for 0."""

import numpy as np

F16_MAX = 65504.0
F16_MIN_NORMAL = 2.0**-14  # below, fp16 is a grid of step 2**-24


def to_half(x: np.ndarray) -> np.ndarray:
    """Nearest fp16 values (half to even) as float32, saturating at +-65504.

    numpy's cast raises a floating-point flag for each inexact subnormal (about 70 ns each), so
    those are rounded here: adding 0.5 leaves a grid of 2**-24.
    """
    size = np.abs(x)
    normal = np.clip(size, F16_MIN_NORMAL, F16_MAX).astype(np.float16).astype(np.float32)
    subnormal = (np.minimum(size, np.float32(F16_MIN_NORMAL)) + np.float32(0.5)) - np.float32(0.5)
    return np.copysign(np.where(size < F16_MIN_NORMAL, subnormal, normal), x)


def to_half_scale(x: np.ndarray) -> np.ndarray:
    """Like to_half, but subnormals round away from zero.

    For the d that integer scales multiply: a d that is too small by a third would clip the largest
    scale, and a d of zero would lose the block; a d that is too large only wastes integers.
    """
    size = np.abs(x)
    up = np.ceil(np.minimum(size, np.float32(F16_MIN_NORMAL)) * 2**24) * np.float32(2**-24)
    return np.where(size < F16_MIN_NORMAL, np.copysign(up, x), to_half(x))


def reciprocal(x: np.ndarray) -> np.ndarray:
    """1/x, and 0 where x is 0 or so small that 1/x is not finite."""
    usable = np.abs(x) >= np.float32(2.0**-126)
    return np.divide(np.float32(1), x, out=np.zeros_like(x), where=usable)


def signed_extreme(x: np.ndarray) -> np.ndarray:
    """The value of largest magnitude along axis 0, the first one of two opposite ones (as ggml)."""
    high = np.maximum.reduce(x, axis=0)
    low = np.minimum.reduce(x, axis=0)
    extreme = np.maximum(high, -low)
    np.copyto(extreme, low, where=high < -low)
    tied = high == -low
    if tied.any():
        candidates = x[:, tied]
        first = np.abs(candidates).argmax(axis=0)
        extreme[tied] = np.take_along_axis(candidates, first[None], axis=0)[0]
    return extreme + np.float32(0)  # +0 for a block of zeros


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
    return np.clip(out, np.float32(lo), np.float32(hi), out=out)
