"""Weights and importances for the recorded comparison with ggml; no quantcli import.

Built from PCG64's raw 64-bit stream with exactly rounded arithmetic only (+, *, /, sqrt), so that
every numpy on every machine makes the same bits. The record keeps their sha256.
"""

import numpy as np

ROWS, COLS = 48, 1024


def uniform(seed: int, *shape: int) -> np.ndarray:
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return (raw >> np.uint64(11)).reshape(shape) * 2.0**-53


def bell(seed: int, rows: int = ROWS, cols: int = COLS) -> np.ndarray:
    """Sums of uniforms: nearly normal, standard deviation 1."""
    return (uniform(seed, 12, rows, cols).sum(axis=0) - 6).astype(np.float32)


def bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32) + np.uint32(0x8000)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def weights() -> dict[str, np.ndarray]:
    heavy = bell(2) / np.sqrt(uniform(3, ROWS, COLS) + 0.001)
    lone = 0.02 * bell(6)
    lone.reshape(-1)[::509] *= 40
    made = {
        "bell": 0.02 * bell(1),
        "heavy": 0.02 * heavy,
        "bf16": bfloat16(0.02 * bell(4)),
        "positive": uniform(5, ROWS, COLS),
        "negative": -0.5 - 0.1 * uniform(5, ROWS, COLS),
        "outliers": lone,
        "sparse": np.where(uniform(7, ROWS, COLS) < 0.2, 0.02 * bell(8), 0),
        "small": 1e-4 * bell(9),
        "large": 1000 * bell(10),
    }
    return {name: x.astype(np.float32) for name, x in made.items()}


def importances() -> dict[str, np.ndarray]:
    u = uniform(11, COLS)
    return {"mild": (0.5 + u).astype(np.float32), "steep": (1 / (u * u + 0.001)).astype(np.float32)}
