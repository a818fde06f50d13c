"""One transformer block: its weights in float32, and what it does to a tile of windows."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from quantcli.errors import BadInputError
from quantcli.transformer.activations import gate, rms_norm
from quantcli.transformer.attention import attention
from quantcli.transformer.hyperparameters import Hyperparameters
from quantcli.transformer.rope import rotate


@dataclass(frozen=True)
class Site:
    """One input of linears: `name` like "blk.0.attn", `weights` the linears' GGUF names."""

    name: str
    weights: tuple[str, ...]


# Fixed, so that results do not depend on the number of threads.
TILE_TOKENS = 1024

Tap = Callable[[Site, np.ndarray], None]
Rounding = Callable[[np.ndarray, str], np.ndarray]


def sites_of(sizes: Hyperparameters, number: int) -> dict[str, Site]:
    """The sites of a block by their short names, in the order in which they run."""
    return {
        short: Site(f"blk.{number}.{short}", tuple(f"blk.{number}.{n}.weight" for n in linears))
        for short, linears in sizes.wiring.sites.items()
    }


class Block:
    """The weights of one block and its place in the model."""

    def __init__(
        self,
        number: int,
        sizes: Hyperparameters,
        weights: Mapping[str, np.ndarray],
        types: Mapping[str, str],
        rope: np.ndarray,
        rounding: Rounding | None,
    ) -> None:
        """weights: float32 by full name; rope: see Rope.table; rounding: of linears' inputs."""
        self._sizes, self._wiring = sizes, sizes.wiring
        self._prefix = f"blk.{number}."
        self._window = sizes.windows[number]
        self._sites = sites_of(sizes, number)
        self._weights, self._types = weights, types
        self._rounding = rounding
        self._rope_k = rope
        self._rope_q = rope * np.float32(sizes.attention_scale)

    def run(self, x: np.ndarray, tap: Tap) -> None:
        """Advance hidden states x float32 [windows, n_ctx, n_embd] in place.

        `tap` is called with each site and its input [tokens, n_in], before any rounding.
        Raises BadInputError naming the site whose input is not finite.
        """
        after_attention, after_mlp = self._wiring.post_norms
        flat = x.reshape(-1, x.shape[-1])
        mixed = self._attention(self._norm(flat, "attn_norm"), x.shape[:2], tap)
        flat += self._norm(mixed, after_attention)
        for start in range(0, len(flat), TILE_TOKENS):  # a long window's mlp is wide
            rows = flat[start : start + TILE_TOKENS]
            rows += self._norm(self._mlp(self._norm(rows, "ffn_norm"), tap), after_mlp)

    def _attention(self, x: np.ndarray, windows: tuple[int, ...], tap: Tap) -> np.ndarray:
        q, k, v = (
            y.reshape(*windows, -1, self._sizes.head_dim) for y in self._linears("attn", x, tap)
        )
        if self._wiring.qk_norm:
            q, k = self._norm(q, "attn_q_norm"), self._norm(k, "attn_k_norm")
        q = rotate(q, self._rope_q, self._wiring.rope)
        k = rotate(k, self._rope_k, self._wiring.rope)
        out = np.empty_like(q)
        cap = self._sizes.attention_cap
        for one in range(windows[0]):
            attention(q[one], k[one], v[one], out[one], window=self._window, cap=cap)
        (mixed,) = self._linears("attn_output", out.reshape(len(x), -1), tap)
        return mixed

    def _mlp(self, x: np.ndarray, tap: Tap) -> np.ndarray:
        gated, up = self._linears("ffn", x, tap)
        (down,) = self._linears("ffn_down", gate(self._wiring.activation, gated, up), tap)
        return down

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        if not name:
            return x
        return rms_norm(x, self._weights[f"{self._prefix}{name}.weight"], self._sizes.eps)

    def _linears(self, short: str, x: np.ndarray, tap: Tap) -> list[np.ndarray]:
        site = self._sites[short]
        check_finite(x, site.name)
        tap(site, x)
        return [self._linear(name, x) for name in site.weights]

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        if self._rounding is not None:
            x = self._rounding(x, self._types[name])
        y = x @ self._weights[name].T
        bias = self._weights.get(name.removesuffix("weight") + "bias")
        if bias is not None:
            y += bias
        return y


def check_finite(x: np.ndarray, where: str) -> None:
    """Raise BadInputError unless all values are finite; `where` is "<block>.<site>"."""
    # The dot products are quick and, unless they overflow, finite exactly when x is.
    if np.isfinite(np.vecdot(x, x)).all() or np.isfinite(x).all():
        return
    raise BadInputError(
        f"activations at {where} are not finite: a weight before it is damaged, or too large for"
        " float32; check the file, or convert it again from the source"
    )
