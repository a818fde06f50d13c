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

Layer = Callable[[np.ndarray], tuple[np.ndarray, Pull]]


class BlockPass:
    """Computes in the precision of weights and hidden states.

    `squares`: after pulling back, by the name of each linear's weight, the sum over tokens of the
    squared gradients of its outputs, [n_out].
    """

    def __init__(
        self,
        number: int,
        sizes: Hyperparameters,
        weights: Mapping[str, np.ndarray],
        rope: np.ndarray,
    ) -> None:
        """weights: by full name; rope: see Rope.table."""
        self._sizes, self._wiring = sizes, sizes.wiring
        self._weights, self._prefix = weights, f"blk.{number}."
        self._window = sizes.windows[number]
        self._rope = {"k": rope, "q": rope * np.float32(sizes.attention_scale)}
        self.squares: dict[str, np.ndarray] = {}

    def run(self, x: np.ndarray) -> tuple[np.ndarray, Pull]:
        """Hidden states [windows, n_ctx, n_embd] after the block; x stays."""
        after_attention, after_mlp = self._wiring.post_norms
        before_attention, before_mlp = self._wiring.norms
        flat = x.reshape(-1, x.shape[-1])
        attend = partial(self._attention, x.shape[:2])
        added, pull_attention = self._half(flat, before_attention, attend, after_attention)
        between = flat + added
        seen = flat if self._sizes.parallel else between
        added, pull_mlp = self._half(seen, before_mlp, self._mlp, after_mlp)

        def pull(dy: np.ndarray) -> np.ndarray:
            dy = dy.reshape(flat.shape)
            dmlp = pull_mlp(dy)
            if self._sizes.parallel:
                return (dy + pull_attention(dy) + dmlp).reshape(x.shape)
            dy = dy + dmlp
            return (dy + pull_attention(dy)).reshape(x.shape)

        return (between + added).reshape(x.shape), pull

    def _half(
        self, x: np.ndarray, before: str, layer: Layer, after: str
    ) -> tuple[np.ndarray, Pull]:
        """after(layer(before(x))), scaled: what a half of the block adds."""
        y, pull_before = self._norm(x, before)
        y, pull_layer = layer(y)
        y, pull_after = self._norm(y, after)
        scale = self._sizes.residual_scale
        if scale == 1:
            return y, lambda dy: pull_before(pull_layer(pull_after(dy)))
        factor = np.float32(scale)
        return y * factor, lambda dy: pull_before(pull_layer(pull_after(dy * factor)))

    def _attention(self, windows: tuple[int, ...], x: np.ndarray) -> tuple[np.ndarray, Pull]:
        projected, pull_projections = self._linears("attn", x)
        heads = (*windows, -1, self._sizes.head_dim)
        parts = split_heads(projected, self._sizes)
        q, pull_q = self._place(parts[0], heads, "q")
        k, pull_k = self._place(parts[1], heads, "k")
        v = parts[2].reshape(heads)
        cap = self._sizes.attention_cap
        attend = partial(attention_and_pull, window=self._window, cap=cap)
        mixed, pulls = zip(*map(attend, q, k, v), strict=True)
        (y,), pull_output = self._linears("attn_output", np.stack(mixed).reshape(len(x), -1))

        def pull(dy: np.ndarray) -> np.ndarray:
            dmixed = pull_output([dy]).reshape(q.shape)
            parts = zip(*(back(d) for back, d in zip(pulls, dmixed, strict=True)), strict=True)
            dq, dk, dv = map(np.stack, parts)
            flat = [pull_q(dq), pull_k(dk), dv.reshape(len(x), -1)]
            return pull_projections(flat if len(projected) > 1 else [np.concatenate(flat, axis=1)])

        return y, pull

    def _place(self, x: np.ndarray, heads: tuple[int, ...], which: str) -> tuple[np.ndarray, Pull]:
        """q or k as [windows, n_ctx, heads, head_dim]: normed where the wiring says so, turned."""
        flat = x.shape
        normed = x if self._wiring.joint_qk_norm else x.reshape(heads)
        normed, pull_norm = self._norm_heads(normed, f"attn_{which}_norm")
        rest = self._sizes.attention_scale if which == "q" else 1.0
        y, pull_turn = rotate_and_pull(
            normed.reshape(heads), self._rope[which], self._wiring.rope, rest
        )
        return y, lambda dy: pull_norm(pull_turn(dy).reshape(normed.shape)).reshape(flat)

    def _mlp(self, x: np.ndarray) -> tuple[np.ndarray, Pull]:
        outputs, pull_all = self._linears("ffn", x)
        y, pull_gate = gate_and_pull(
            self._wiring.activation, *gate_and_up(outputs, self._wiring.gated)
        )
        (y,), pull_down = self._linears("ffn_down", y)

        def pull(dy: np.ndarray) -> np.ndarray:
            parts = pull_gate(pull_down([dy]))
            return pull_all(parts if len(outputs) > 1 else [np.concatenate(parts, axis=1)])

        return y, pull

    def _norm(self, x: np.ndarray, name: str) -> tuple[np.ndarray, Pull]:
        if not name:
            return x, lambda dy: dy
        weight = self._weights[f"{self._prefix}{name}.weight"]
        if self._wiring.norm == "rms":
            return norm_and_pull(x, weight, self._sizes.eps)
        bias = self._weights.get(f"{self._prefix}{name}.bias")
        return layer_norm_and_pull(x, weight, bias, self._sizes.eps)

    def _norm_heads(self, x: np.ndarray, name: str) -> tuple[np.ndarray, Pull]:
        if not self._wiring.qk_norm:
            return x, lambda dy: dy
        return norm_and_pull(x, self._weights[f"{self._prefix}{name}.weight"], self._sizes.eps)

    def _linears(
        self, short: str, x: np.ndarray
    ) -> tuple[list[np.ndarray], Callable[[Sequence[np.ndarray]], np.ndarray]]:
        """The linears of a site; pull takes the gradients of their outputs."""
        names = [self._prefix + name for name in self._wiring.sites[short]]

        def pull(dys: Sequence[np.ndarray]) -> np.ndarray:
            dx = np.zeros_like(x)
            for name, dy in zip(names, dys, strict=True):
                self.squares[f"{name}.weight"] = np.einsum("tr,tr->r", dy, dy)
                dx += dy @ self._weights[f"{name}.weight"]
            return dx

        return [self.linear(name, x) for name in names], pull

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        """x W^T + bias of a linear, by its name without ".weight"."""
        y = x @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return y if bias is None else y + bias
