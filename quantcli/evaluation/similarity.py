"""Similarity: what is said about a model that embeds, against a reference."""

from dataclasses import dataclass

import numpy as np

from quantcli.evaluation.protocol import mean


@dataclass(frozen=True)
class Similarity:
    """Cosine similarity of embeddings to the reference's; 1 is the same direction.

    pooling: how hidden states became embeddings: "mean", "cls" or "last" for one of each window,
    "none" for one of each token; embeddings: how many were compared.
    """

    text_sha256: str
    context: int
    chunks: int
    activations: str  # "float", or "llama-cpu": rounded as llama.cpp's CPU runtime does
    pooling: str
    embeddings: int
    cosine_mean: float
    cosine_stderr: float
    cosine_min: float


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Cosine of the angle between rows, float64 [n]; 0 where one is zero, which has no direction.

    From the difference of unit vectors, which is exact where they are nearly the same.
    """
    a, b = (_unit(x.astype(np.float64)) for x in (found, expected))
    near: np.ndarray = 1 - np.square(a - b).sum(axis=1) / 2
    return np.where(a.any(axis=1) & b.any(axis=1), near, 0.0)


def cosine_fields(values: np.ndarray) -> dict[str, float]:
    """The fields of Similarity that are made of cosines float64 [n]."""
    estimate = mean(values)
    return {
        "cosine_mean": estimate.value,
        "cosine_stderr": estimate.stderr,
        "cosine_min": float(values.min()),
    }


def _unit(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.divide(x, length, out=np.zeros_like(x), where=length > 0)
