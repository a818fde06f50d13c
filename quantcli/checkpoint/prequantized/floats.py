"""Numbers of 8 and 4 bits as float32, each exactly, by table."""

import numpy as np

from quantcli.checkpoint.safetensors import to_float32 as wide_to_float32

FLOATS = ("F32", "BF16", "F16")


def _small(bits: int, exponent_bits: int, bias: int) -> np.ndarray:
    """Every number of `bits` bits: a sign, an exponent, and the rest a mantissa; no infinities."""
    mantissa_bits = bits - 1 - exponent_bits
    codes = np.arange(1 << bits)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    size = np.where(
        exponent == 0, np.ldexp(mantissa, 1 - bias), np.ldexp(1 + mantissa, exponent - bias)
    )
    return np.where(codes >> (bits - 1), -size, size).astype(np.float32)


# OCP 8-bit Floating Point Specification: S.EEEE.MMM, bias 7; all ones are NaN, nothing is infinite.
E4M3 = _small(8, 4, 7)
E4M3[[0x7F, 0xFF]] = np.nan
# OCP Microscaling Formats: an exponent alone, 255 is NaN; and S.EE.M, bias 1.
E8M0 = np.array([*(2.0 ** (code - 127) for code in range(255)), np.nan], np.float32)
E2M1 = _small(4, 2, 1)

_TABLES = {"F8_E4M3": E4M3, "F8_E8M0": E8M0}


def to_float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Return a float32 copy of stored numbers, exact."""
    table = _TABLES.get(dtype)
    return wide_to_float32(raw, dtype) if table is None else table[raw]
