"""Damage for files that are nearly right, shared by their makers.

`mutated_safetensors` and `mutated_gguf` make valid files of a random structure and damage them
where it hurts: they know the fields (lengths, counts, types, shapes, offsets, names), so the damage
gets past the first check. Every input comes from a `random.Random` alone: its seed names it.
"""

from random import Random

LIMITS = [2**n + d for n in (3, 5, 6, 8, 15, 16, 20, 31, 32, 40, 53, 63, 64) for d in (-1, 0, 1)]
NAMES = ["", "\x1b[2J", "../x", "a/b", "a\0", "ü", "🦙", "\ud800", "n" * 63, "n" * 64, "n" * 600]
NAMES += ["general.alignment", "__metadata__", "t0", "t1", '"', "\\", "\n"]


def odd_number(rng: Random, near: int = 0) -> int:
    """A number near another one, near a limit, or negative."""
    return rng.choice([near + 1, near - 1, 2 * near, -near, 0, 1, rng.choice(LIMITS)])


def damaged_bytes(rng: Random, data: bytes) -> bytes:
    """Bytes changed, cut out, put in, repeated, or cut off at the end."""
    if not data:
        return rng.randbytes(rng.randrange(1, 9))
    at = rng.randrange(len(data))
    end = min(len(data), at + rng.choice([1, 2, 8, 40]))
    replacement = rng.choice(
        [b"", bytes([data[at] ^ 1 << rng.randrange(8)]), rng.randbytes(end - at), data[at:end] * 2]
    )
    if rng.random() < 0.2:
        return data[:at]
    return data[:at] + replacement + data[end:]


def several(rng: Random) -> range:
    """How often something is damaged: not at all in every sixth input."""
    return range(rng.choice([0, 1, 1, 1, 2, 3]))
