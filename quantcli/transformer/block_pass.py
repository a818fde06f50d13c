"""A tile of windows on its way through one block, and its gradients on their way back."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from quantcli.transformer.block import gate_and_up, split_heads
from quantcli.transformer.derivatives import (
    Pull,
    attention_and_pull,
    gate_and_pull,
    layer_norm_and_pull,
    norm_and_pull,
    rotate_and_pull,
)
from quantcli.transformer.hyperparameters import Hyperparameters
from quantcli.transformer.latent_pass import attend_and_pull
from quantcli.transformer.mixture_pass import mix_and_pull

Layer = Callable[[np.ndarray], tuple[np.ndarray, Pull]]


class BlockPass:
    """Computes in the precision of weights and hidden states.

    `squares`: after pulling back, by the name of each linear's weight, the sum over tokens of the
    squared gradients of its outputs, [n_out], a row for each expert of a stack.
    """

    def __init__(
        self,
        number: int,
        sizes: Hyperparameters,
        weights: Mapping[str, np.ndarray],
        rope: np.ndarray,
    ) -> None:
        """weights: by full name; rope: see Rope.table."""
        self.sizes = sizes.of(number)
        self.wiring = self.sizes.wiring
        self._weights, self._prefix = weights, f"blk.{number}."
        self._window = sizes.windows[number]
        self.experts = sizes.experts_of(number)
        self.rope = {"k": rope, "q": rope * np.float32(sizes.attention_scale)}
        self.squares: dict[str, np.ndarray] = {}

    def run(self, x: np.ndarray) -> tuple[np.ndarray, Pull]:
        """Hidden states [windows, n_ctx, n_embd] after the block; x stays."""
        y, pull = self._halves(x)
        if not self.wiring.block_scale:
            return y, pull
        scale = self._weights[f"{self._prefix}layer_output_scale.weight"]
        return y * scale, lambda dy: pull(dy * scale)

    def _halves(self, x: np.ndarray) -> tuple[np.ndarray, Pull]:
        after_attention, after_mlp = self.wiring.post_norms
        before_attention, before_mlp = self.wiring.norms
        flat = x.reshape(-1, x.shape[-1])
        attention = self._attention if self.sizes.latent is None else self._latent_attention
        attend = partial(attention, x.shape[:2])
        mlp = self._mlp if self.experts is None else partial(mix_and_pull, self)
        added, pull_attention = self._half(flat, before_attention, attend, after_attention)
        norm_between, norm_end = self.wiring.sum_norms
        between, pull_between = self.norm(flat + added, norm_between)
        seen = flat if self.sizes.parallel else between
        added, pull_mlp = self._half(seen, before_mlp, mlp, after_mlp)
        y, pull_end = self.norm(between + added, norm_end)

        def pull(dy: np.ndarray) -> np.ndarray:
            dy = pull_end(dy.reshape(flat.shape))
            dmlp = pull_mlp(dy)
            if self.sizes.parallel:
                return (dy + pull_attention(dy) + dmlp).reshape(x.shape)
            dy = pull_between(dy + dmlp)
            return (dy + pull_attention(dy)).reshape(x.shape)

        return y.reshape(x.shape), pull

    def _half(
        self, x: np.ndarray, before: str, layer: Layer, after: str
    ) -> tuple[np.ndarray, Pull]:
        """after(layer(before(x))), scaled: what a half of the block adds."""
        y, pull_before = self.norm(x, before)
        y, pull_layer = layer(y)
        y, pull_after = self.norm(y, after)
        scale = self.sizes.residual_scale
        if scale == 1:
            return y, lambda dy: pull_before(pull_layer(pull_after(dy)))
        factor = np.float32(scale)
        return y * factor, lambda dy: pull_before(pull_layer(pull_after(dy * factor)))

    def _attention(self, windows: tuple[int, ...], x: np.ndarray) -> tuple[np.ndarray, Pull]:
        projected, pull_projections = self.linears(self.wiring.sites["attn"], x)
        heads = (*windows, -1, self.sizes.head_dim)
        parts = split_heads(projected, self.sizes)
        q, pull_q = self._place(parts[0], heads, "q")
        k, pull_k = self._place(parts[1], heads, "k")
        v, pull_v = self._values(parts[2].reshape(heads))
        attend = partial(
            attention_and_pull,
            window=self._window,
            cap=self.sizes.attention_cap,
            causal=self.wiring.causal,
            sinks=self._weights[f"{self._prefix}attn_sinks.weight"] if self.wiring.sinks else None,
        )
        mixed, pulls = zip(*map(attend, q, k, v), strict=True)
        mixed_heads = np.stack(mixed).reshape(len(x), -1)
        (y,), pull_output = self.linears(self.wiring.sites["attn_output"], mixed_heads)

        def pull(dy: np.ndarray) -> np.ndarray:
            dmixed = pull_output([dy]).reshape(q.shape)
            parts = zip(*(back(d) for back, d in zip(pulls, dmixed, strict=True)), strict=True)
            dq, dk, dv = map(np.stack, parts)
            flat = [pull_q(dq), pull_k(dk), pull_v(dv).reshape(len(x), -1)]
            if len(projected) == 2:
                return pull_projections([flat[0], flat[1] + flat[2]])
            return pull_projections(flat if len(projected) > 1 else [np.concatenate(flat, axis=1)])

        return y, pull

    def _latent_attention(self, windows: tuple[int, ...], x: np.ndarray) -> tuple[np.ndarray, Pull]:
        mixed, pull_mixed = attend_and_pull(self, windows, x)
        (y,), pull_output = self.linears(self.wiring.sites["attn_output"], mixed)
        return y, lambda dy: pull_mixed(pull_output([dy]))

    def _place(self, x: np.ndarray, heads: tuple[int, ...], which: str) -> tuple[np.ndarray, Pull]:
        """q or k as [windows, n_ctx, heads, head_dim]: normed where the wiring says so, turned."""
        flat = x.shape
        normed = x if self.wiring.joint_qk_norm else x.reshape(heads)
        normed, pull_norm = self._norm_heads(normed, f"attn_{which}_norm")
        rest = self.sizes.attention_scale if which == "q" else 1.0
        y, pull_turn = rotate_and_pull(
            normed.reshape(heads), self.rope[which], self.wiring.rope, rest
        )
        return y, lambda dy: pull_norm(pull_turn(dy).reshape(normed.shape)).reshape(flat)

    def _values(self, v: np.ndarray) -> tuple[np.ndarray, Pull]:
        if not self.wiring.value_norm:
            return v, lambda dv: dv
        return norm_and_pull(v, np.ones(v.shape[-1], v.dtype), self.sizes.eps)

    def _mlp(self, x: np.ndarray) -> tuple[np.ndarray, Pull]:
        return self.gated(self.wiring.sites["ffn"], self.wiring.sites["ffn_down"], x)

    def gated(
        self, both: Sequence[str], down: Sequence[str], x: np.ndarray, expert: int | None = None
    ) -> tuple[np.ndarray, Pull]:
        """An mlp of the linears of these short names; expert: see linears."""
        outputs, pull_all = self.linears(both, x, expert)
        y, pull_gate = gate_and_pull(
            self.wiring.activation, *gate_and_up(outputs, self.wiring.gated)
        )
        (y,), pull_down = self.linears(down, y, expert)

        def pull(dy: np.ndarray) -> np.ndarray:
            parts = pull_gate(pull_down([dy]))
            return pull_all(parts if len(outputs) > 1 else [np.concatenate(parts, axis=1)])

        return y, pull

    def norm(self, x: np.ndarray, name: str) -> tuple[np.ndarray, Pull]:
        """The norm of that short name, "" for none."""
        if not name:
            return x, lambda dy: dy
        weight = self._weights[f"{self._prefix}{name}.weight"]
        if self.wiring.norm == "rms":
            return norm_and_pull(x, weight, self.sizes.eps)
        bias = self._weights.get(f"{self._prefix}{name}.bias")
        return layer_norm_and_pull(x, weight, bias, self.sizes.eps)

    def _norm_heads(self, x: np.ndarray, name: str) -> tuple[np.ndarray, Pull]:
        if not self.wiring.qk_norm:
            return x, lambda dy: dy
        return norm_and_pull(x, self._weights[f"{self._prefix}{name}.weight"], self.sizes.eps)

    def linears(
        self, shorts: Sequence[str], x: np.ndarray, expert: int | None = None
    ) -> tuple[list[np.ndarray], Callable[[Sequence[np.ndarray]], np.ndarray]]:
        """Linears that share an input; pull takes the gradients of their outputs.

        expert: whose matrix it is where a weight is a stack.
        """
        names = [self._prefix + name for name in shorts]

        def pull(dys: Sequence[np.ndarray]) -> np.ndarray:
            dx = np.zeros_like(x)
            for name, dy in zip(names, dys, strict=True):
                self._add_squares(f"{name}.weight", dy, expert)
                dx += dy @ self._matrix(name, expert)
            return dx

        return [self.linear(name, x, expert) for name in names], pull

    def _add_squares(self, name: str, dy: np.ndarray, expert: int | None) -> None:
        squares = np.einsum("tr,tr->r", dy, dy)
        if expert is None:
            self.squares[name] = squares
        else:
            rows = self._weights[name].shape[:2]
            self.squares.setdefault(name, np.zeros(rows, dy.dtype))[expert] = squares

    def _matrix(self, name: str, expert: int | None) -> np.ndarray:
        w = self._weights[f"{name}.weight"]
        return w if expert is None else w[expert]

    def linear(self, name: str, x: np.ndarray, expert: int | None = None) -> np.ndarray:
        """x W^T + bias of a linear, by its name without ".weight"."""
        y = x @ self._matrix(name, expert).T
        bias = self._weights.get(f"{name}.bias")
        if bias is None:
            return y
        return y + (bias if expert is None else bias[expert])
