"""One transformer block: its weights in float32, and what it does to a tile of windows."""

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial

import numpy as np

from quantcli.architectures.wiring import ATTENTION, MLP
from quantcli.errors import BadInputError
from quantcli.transformer.activations import gate, layer_norm, rms_norm
from quantcli.transformer.attention import attention
from quantcli.transformer.hyperparameters import Hyperparameters
from quantcli.transformer.latent_attention import attend
from quantcli.transformer.mixture import mix
from quantcli.transformer.rope import rotate
from quantcli.transformer.sites import Tap, sites_of

# Fixed, so that results do not depend on the number of threads.
TILE_TOKENS = 1024

Rounding = Callable[[np.ndarray, str], np.ndarray]


def rest_of(block: "Block") -> list[str]:
    """The sites that a Stream can walk: latent attention before its output is methods.latent's."""
    order = list(block.sites)
    return order[order.index("attn_output") :] if block.sizes.latent else order


class Block:
    """The weights of one block and its place in the model."""

    def __init__(
        self,
        number: int,
        sizes: Hyperparameters,
        weights: dict[str, np.ndarray],
        types: Mapping[str, str],
        rope: np.ndarray,
        rounding: Rounding | None,
    ) -> None:
        """weights: float32 by full name; rope: see Rope.table; rounding: of linears' inputs."""
        self.sizes = sizes.of(number)
        self.wiring = self.sizes.wiring
        self._prefix = f"blk.{number}."
        self._window = sizes.windows[number]
        self.sites, self.experts = sites_of(sizes, number), sizes.experts_of(number)
        self.weights, self._types = weights, types
        self._rounding = rounding
        self.rope_k = rope
        self.rope_q = rope * np.float32(sizes.attention_scale)

    def run(self, x: np.ndarray, tap: Tap) -> None:
        """Advance hidden states x float32 [windows, n_ctx, n_embd] in place.

        `tap` is called with each site and its input [tokens, n_in], before any rounding.
        Raises BadInputError naming the site whose input is not finite.
        """
        seen = self.seen_by_mlp(x)
        if self.sizes.latent is None:
            self._walk(ATTENTION, x, x, tap)
        else:
            y = attend(self, self.enter("attn", x), x.shape[:2], tap)
            self.leave("attn_output", x, self.meet("attn_output", y, tap))
        flat, seen = (a.reshape(1, -1, x.shape[-1]) for a in (x, seen))
        for start in range(0, flat.shape[1], TILE_TOKENS):  # a long window's mlp is wide
            tile = slice(start, start + TILE_TOKENS)
            if self.experts is None:
                self._walk(MLP, flat[:, tile], seen[:, tile], tap)
            else:
                made = mix(self, self.enter("ffn", seen[:, tile]), tap)
                self._add(flat[:, tile], made, "ffn_down")

    def seen_by_mlp(self, x: np.ndarray) -> np.ndarray:
        """x itself, which attention is about to change, or where the mlp is beside it a copy."""
        return x.copy() if self.sizes.parallel else x

    def _walk(self, half: tuple[str, ...], x: np.ndarray, seen: np.ndarray, tap: Tap) -> None:
        y = self.enter(half[0], seen)
        for short in half:
            y = self.leave(short, x, self.meet(short, y, tap))

    def meet(self, short: str, y: np.ndarray, tap: Tap) -> list[np.ndarray]:
        """Outputs of a site's linears for its input y float32 [tokens, n_in], which is tapped."""
        site = self.sites[short]
        check_finite(y, site.name)
        tap(site, y)
        return [self.linear(name, y, site.expert) for name in site.weights]

    def full(self, short: str) -> str:
        """The GGUF name of a weight of this block."""
        return f"{self._prefix}{short}.weight"

    def width(self, short: str) -> int:
        """How many inputs the linears of a site have."""
        sizes = self.sizes
        heads = sizes.n_head * (sizes.latent.n_value if sizes.latent else sizes.head_dim)
        return {"attn_output": heads, "ffn_down": sizes.n_ff}.get(short, sizes.n_embd)

    def twin(self) -> "Block":
        """The same block with the weights of its linears missing: they are to be filled in."""
        linears = {name for site in self.sites.values() for name in site.weights}
        made = copy(self)
        made.weights = {name: w for name, w in self.weights.items() if name not in linears}
        return made

    def enter(self, short: str, x: np.ndarray) -> np.ndarray:
        """The input [tokens, n_in] of a site that begins a half of the block."""
        norm = dict(zip(("attn", "ffn"), self.wiring.norms, strict=True))[short]
        flat = x.reshape(-1, x.shape[-1])
        return self.norm(flat, norm) if norm else flat.copy()  # x is about to change

    def leave(self, short: str, x: np.ndarray, outputs: list[np.ndarray]) -> np.ndarray:
        """What becomes of the outputs of a site's linears: the input of the site that follows.

        At the end of a half they are added to x [windows, n_ctx, n_embd], which is returned flat.
        """
        if short == "attn":
            return self._attention(outputs, x.shape[:2])
        if short == "ffn":
            return gate(self.wiring.activation, *gate_and_up(outputs, self.wiring.gated))
        return self._add(x, outputs[0], short)

    def _add(self, x: np.ndarray, made: np.ndarray, short: str) -> np.ndarray:
        post_norm = dict(zip(("attn_output", "ffn_down"), self.wiring.post_norms, strict=True))
        flat = x.reshape(-1, x.shape[-1])
        added = self.norm(made, post_norm[short])
        if self.sizes.residual_scale != 1:
            added = added * np.float32(self.sizes.residual_scale)
        flat += added
        sum_norm = dict(zip(("attn_output", "ffn_down"), self.wiring.sum_norms, strict=True))
        if sum_norm[short]:
            flat[...] = self.norm(flat, sum_norm[short])
        if self.wiring.block_scale and short == "ffn_down":
            flat *= self.weights[self.full("layer_output_scale")]
        return flat

    def _attention(self, projected: list[np.ndarray], windows: tuple[int, ...]) -> np.ndarray:
        q, k, v = split_heads(projected, self.sizes)
        if self.wiring.joint_qk_norm:
            q, k = self._norm_heads(q, "attn_q_norm"), self._norm_heads(k, "attn_k_norm")
        q, k, v = (y.reshape(*windows, -1, self.sizes.head_dim) for y in (q, k, v))
        if self.wiring.qk_norm and not self.wiring.joint_qk_norm:
            q, k = self._norm_heads(q, "attn_q_norm"), self._norm_heads(k, "attn_k_norm")
        if self.wiring.value_norm:
            v = rms_norm(v, np.ones(v.shape[-1], v.dtype), self.sizes.eps)
        q = rotate(q, self.rope_q, self.wiring.rope, self.sizes.attention_scale)
        k = rotate(k, self.rope_k, self.wiring.rope)
        out = np.empty_like(q)
        attend = partial(
            attention,
            window=self._window,
            cap=self.sizes.attention_cap,
            causal=self.wiring.causal,
            sinks=self.weights[self.full("attn_sinks")] if self.wiring.sinks else None,
        )
        for one in range(windows[0]):
            attend(q[one], k[one], v[one], out[one])
        return out.reshape(windows[0] * windows[1], -1)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """The norm of that short name, "" for none."""
        if not name:
            return x
        weight = self.weights[f"{self._prefix}{name}.weight"]
        if self.wiring.norm == "rms":
            return rms_norm(x, weight, self.sizes.eps)
        return layer_norm(x, weight, self.weights.get(f"{self._prefix}{name}.bias"), self.sizes.eps)

    def _norm_heads(self, x: np.ndarray, name: str) -> np.ndarray:
        return rms_norm(x, self.weights[f"{self._prefix}{name}.weight"], self.sizes.eps)

    def linear(self, name: str, x: np.ndarray, expert: int | None = None) -> np.ndarray:
        """x W^T + bias of the linear whose weight is called `name`, after rounding x.

        expert: whose matrix of a stack it is.
        """
        if self._rounding is not None:
            x = self._rounding(x, self._types[name])
        w = self.weights[name]
        y = x @ (w if expert is None else w[expert]).T
        bias = self.bias(name, expert)
        if bias is not None:
            y += bias
        return y

    def bias(self, name: str, expert: int | None = None) -> np.ndarray | None:
        """What is added after the linear whose weight is called `name`, None for nothing."""
        bias = self.weights.get(name.removesuffix("weight") + "bias")
        return bias if bias is None or expert is None else bias[expert]


def split_heads(projected: list[np.ndarray], sizes: Hyperparameters) -> list[np.ndarray]:
    """q, k, v [tokens, n] of what the linears of the first site return: one, two or three."""
    if len(projected) == 2:
        return [*projected, projected[1]]
    if len(projected) > 1:
        return projected
    q, kv = sizes.n_head * sizes.head_dim, sizes.n_head_kv * sizes.head_dim
    return np.split(projected[0], [q, q + kv], axis=1)


def gate_and_up(outputs: list[np.ndarray], gated: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Of what the linears of "ffn" return: (gate, up), or what has no gate and None."""
    if len(outputs) == 2:
        return outputs[0], outputs[1]
    if not gated:
        return outputs[0], None
    gate_half, up = np.split(outputs[0], 2, axis=1)
    return gate_half, up


def check_finite(x: np.ndarray, where: str) -> None:
    """Raise BadInputError unless all values are finite; `where` is "<block>.<site>"."""
    # The dot products are quick and, unless they overflow, finite exactly when x is.
    if np.isfinite(np.vecdot(x, x)).all() or np.isfinite(x).all():
        return
    raise BadInputError(
        f"activations at {where} are not finite: a weight before it is damaged, or too large for"
        " float32; check the file, or convert it again from the source"
    )
