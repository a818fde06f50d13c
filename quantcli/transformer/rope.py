"""Rotary position embeddings as GGUF metadata states them (ggml's rope_yarn, YaRN's paper)."""

import math
from dataclasses import dataclass

import numpy as np

from quantcli.errors import UnsupportedError
from quantcli.transformer.keys import Keys


@dataclass(frozen=True)
class Rope:
    """Frequencies base^(-2i/head_dim), all divided by `factor`, or by yarn only the slow ones.

    head_dim: how many dimensions of a head turn; original_context: the windows for which the model
    was trained before it was stretched.
    """

    head_dim: int
    base: float
    factor: float = 1.0
    yarn: bool = False
    original_context: int = 0
    fast: float = 32.0
    slow: float = 1.0
    extrapolation: float = 1.0
    magnitude: float = 1.0

    @classmethod
    def read(cls, keys: Keys, head_dim: int) -> "Rope":
        """From "<arch>.rope.*". Raises BadInputError, UnsupportedError (another scaling)."""
        kind = keys.get("rope.scaling.type") or "none"
        if kind not in ("none", "linear", "yarn", "longrope"):
            raise UnsupportedError(
                f"metadata: {keys.name('rope.scaling.type')} = {kind!r:.80}: the forward pass"
                " computes linear, yarn and longrope, converting works"
            )
        base = keys.number("rope.freq_base", 10000.0)
        original = keys.count("rope.scaling.original_context_length", keys.count("context_length"))
        magnitude = keys.number("rope.scaling.attn_factor", 1.0)
        if kind in ("none", "longrope"):  # the factors of longrope are tensors
            return cls(head_dim, base, original_context=original, magnitude=magnitude)
        factor = keys.number("rope.scaling.factor", 1.0)
        if kind == "linear":
            return cls(head_dim, base, factor)
        stretched = 1 + 0.1 * math.log(factor)
        return cls(
            head_dim,
            base,
            factor,
            yarn=True,
            original_context=original,
            fast=keys.number("rope.scaling.yarn_beta_fast", 32.0),
            slow=keys.number("rope.scaling.yarn_beta_slow", 1.0),
            extrapolation=keys.number("rope.scaling.yarn_ext_factor", 1.0),
            magnitude=keys.number("rope.scaling.yarn_attn_factor", stretched) * magnitude,
        )

    def table(self, n_ctx: int, factors: np.ndarray | None = None) -> np.ndarray:
        """cos and sin, float32 [2, n_ctx, 1, head_dim/2]; `factors` divide the frequencies.

        Angles are products of float32, as torch computes them.
        """
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        frequency = 1 / np.power(np.float32(self.base), exponents)
        if factors is not None:
            frequency = frequency / factors
        kept = self._kept() if self.yarn else 0.0
        frequency = frequency * (kept + (1 - kept) / self.factor)
        angles = np.arange(n_ctx, dtype=np.float32)[:, None] * frequency.astype(np.float32)
        both = np.stack([np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))])
        return (both * self.magnitude).astype(np.float32)[:, :, None]

    def _kept(self) -> np.ndarray:
        """The share of each frequency that yarn leaves alone: 1 for fast ones, 0 for slow ones."""
        low, high = (
            self.head_dim
            * math.log(self.original_context / (turns * 2 * math.pi))
            / (2 * math.log(self.base))
            for turns in (self.fast, self.slow)
        )
        first, last = max(0, math.floor(low)), min(self.head_dim - 1, math.ceil(high))
        ramp = (np.arange(self.head_dim // 2) - first) / max(0.001, last - first)
        return (1 - np.clip(ramp, 0, 1)) * self.extrapolation


def rotate(x: np.ndarray, table: np.ndarray, style: str, rest: float = 1.0) -> np.ndarray:
    """x [..., n_ctx, heads, head_dim] turned by `table`; `style` as in Wiring.rope.

    Dimensions beyond those of the table are multiplied by `rest`.
    """
    half = table.shape[-1]
    first, second = {
        "norm": (slice(0, 2 * half, 2), slice(1, 2 * half, 2)),
        "neox": (slice(None, half), slice(half, 2 * half)),
        "": (slice(0), slice(0)),
    }[style]
    (cos, sin), a, b = table, x[..., first], x[..., second]
    out = np.empty_like(x)
    np.subtract(a * cos, b * sin, out=out[..., first])
    np.add(a * sin, b * cos, out=out[..., second])
    if 2 * half < x.shape[-1]:
        np.multiply(x[..., 2 * half :], np.float32(rest), out=out[..., 2 * half :])
    return out
