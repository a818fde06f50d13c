"""The sizes of a model, read from GGUF metadata that nobody has checked yet."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from quantcli.architectures import Wiring, find_wiring
from quantcli.errors import BadInputError, UnsupportedError
from quantcli.transformer.experts import Experts, read_experts
from quantcli.transformer.keys import Keys
from quantcli.transformer.latent_sizes import Latent, latent_rope, read_latent
from quantcli.transformer.pooling import POOLINGS
from quantcli.transformer.rope import Rope

_MAX_BLOCKS = 512  # LLAMA_MAX_LAYERS


@dataclass(frozen=True)
class Hyperparameters:
    """Sizes in llama.cpp's words; `windows` holds each block's sliding window, 0 for none.

    head_dim: of a query; n_rot: the dimensions of a head that rope turns; n_dense: the first blocks
    that have no experts although others have; parallel: see Wiring; residual_scale: of what
    attention and mlp add; pooling: see pool, of models that embed; local: what is said here of the
    heads of sliding blocks, if it differs.
    """

    wiring: Wiring
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_rot: int
    n_ctx: int
    eps: float
    windows: tuple[int, ...]
    rope: Rope
    local_rope: Rope
    attention_scale: float
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    attention_cap: float
    logit_cap: float
    parallel: bool
    experts: Experts | None
    n_dense: int
    latent: Latent | None
    pooling: str
    local: "Hyperparameters | None" = None

    @property
    def n_block(self) -> int:
        """Number of blocks."""
        return len(self.windows)

    def experts_of(self, number: int) -> Experts | None:
        """Those of a block, None for an mlp in their place."""
        return None if number < self.n_dense else self.experts

    def of(self, number: int) -> "Hyperparameters":
        """The sizes of one block."""
        return self.local if self.local is not None and self.windows[number] else self


def read_hyperparameters(metadata: Mapping[str, Any], tensors: Collection[str]) -> Hyperparameters:
    """Read and check the "<arch>.*" keys; tensors: the names of all.

    Raises UnsupportedError (no wiring, or a variant that is not computed), BadInputError (a key
    missing or without meaning).
    """
    wiring = find_wiring(metadata.get("general.architecture"))
    for name, other in wiring.with_tensor.items():
        if f"blk.0.{name}.weight" in tensors:
            wiring = other
    keys = Keys(metadata)
    n_block = keys.count("block_count")
    n_embd, n_head = keys.count("embedding_length"), keys.count("attention.head_count")
    windows = _windows(keys, wiring, n_block)
    n_head_kv, local_head_kv = _key_heads(keys, wiring, windows, n_head)
    head_dim = keys.count("attention.key_length", n_embd // n_head or None)
    if n_block > _MAX_BLOCKS or n_head % n_head_kv or head_dim % 2:
        raise BadInputError(
            f"metadata: block_count = {n_block}, head_count = {n_head}, head_count_kv ="
            f" {n_head_kv}, key_length = {head_dim} contradict each other"
        )
    n_rot = keys.count("rope.dimension_count", head_dim)
    rope, latent, stretch = Rope.read(keys, n_rot), None, 1.0
    if wiring.latent:
        latent = read_latent(keys, n_rot, queries="attn_q_b" in wiring.sites)
        rope, stretch = latent_rope(keys, rope)
        head_dim = latent.n_still + n_rot
    else:
        _check_head_sizes(keys, wiring, head_dim)
    local_rot = keys.count("rope.dimension_count_swa", n_rot) if wiring.local_heads else n_rot
    local = Rope(local_rot, keys.number("rope.freq_base_swa", wiring.local_base or rope.base))
    head_size = n_embd // n_head if n_block == wiring.wide_blocks else head_dim
    scale = wiring.attention_scale or stretch / math.sqrt(head_size)
    embedding_scale, residual_scale, attention_scale = (
        keys.number(key, default) if wiring.multipliers else default
        for key, default in (
            ("embedding_scale", math.sqrt(n_embd) if wiring.scaled_embedding else 1.0),
            ("residual_scale", 1.0),
            ("attention.scale", scale),
        )
    )
    eps = {"rms": "layer_norm_rms_epsilon", "layer": "layer_norm_epsilon"}[wiring.norm]
    sizes = Hyperparameters(
        wiring=replace(wiring, sites=wiring.global_sites or wiring.sites),
        n_embd=n_embd,
        n_ff=keys.count("feed_forward_length"),
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_rot=n_rot,
        n_ctx=keys.count("context_length"),
        eps=keys.number(f"attention.{eps}"),
        windows=windows,
        rope=rope,
        local_rope=local if wiring.local_rope else rope,
        attention_scale=attention_scale,
        embedding_scale=embedding_scale,
        residual_scale=residual_scale,
        logit_scale=keys.number("logit_scale", 1.0) ** wiring.logit_scale,
        attention_cap=_cap(keys, "attn_logit_softcapping", wiring.attention_cap),
        logit_cap=_cap(keys, "final_logit_softcapping", wiring.logit_cap),
        parallel=keys.flag("use_parallel_residual") if wiring.parallel is None else wiring.parallel,
        experts=read_experts(keys, wiring),
        n_dense=keys.count("leading_dense_block_count", least=0) if wiring.mixture else 0,
        latent=latent,
        pooling=_pooling(keys) if wiring.embeds else "none",
    )
    if not wiring.local_heads:
        return sizes
    local_sizes = replace(
        sizes,
        wiring=wiring,
        n_head_kv=local_head_kv,
        head_dim=_local_head_dim(keys, head_dim, local_rot),
        n_rot=local_rot,
    )
    return replace(sizes, local=local_sizes)


def _check_head_sizes(keys: Keys, wiring: Wiring, head_dim: int) -> None:
    for key, partial in (
        ("attention.value_length", False),
        ("rope.dimension_count", wiring.partial_rope),
    ):
        found = keys.count(key, head_dim)
        if found != head_dim and not (partial and found < head_dim and found % 2 == 0):
            raise UnsupportedError(
                f"metadata: {keys.name(key)} = {found} differs from the head size"
                f" {head_dim}: the forward pass does not compute that, converting works"
            )


def _key_heads(
    keys: Keys, wiring: Wiring, windows: tuple[int, ...], n_head: int
) -> tuple[int, int]:
    """Heads of k and v of the global and of the sliding blocks."""
    key = "attention.head_count_kv"
    each = keys.get(key)
    if not wiring.local_heads or not isinstance(each, np.ndarray):
        return (keys.count(key, n_head),) * 2
    pairs = [(int(n), bool(window)) for n, window in zip(each, windows, strict=False)]
    kinds = [{n for n, slides in pairs if slides is kind} for kind in (False, True)]
    if len(each) != len(windows) or any(len(kind) > 1 for kind in kinds):
        raise UnsupportedError(
            f"metadata: {keys.name(key)} is not one number for all sliding blocks and one for the"
            " others: the forward pass does not compute that, converting works"
        )
    known = [kind.pop() if kind else None for kind in kinds]
    whole, local = (found if found is not None else n_head for found in known)
    if min(whole, local) < 1 or n_head % whole or n_head % local:
        raise BadInputError(f"metadata: {keys.name(key)} does not divide {n_head} heads")
    return whole, local


def _local_head_dim(keys: Keys, head_dim: int, n_rot: int) -> int:
    """The head size of sliding blocks."""
    size = keys.count("attention.key_length_swa", head_dim)
    values = keys.count("attention.value_length_swa", size)
    if size % 2 or {size} != {values, n_rot}:
        raise UnsupportedError(
            f"metadata: {keys.name('attention.key_length_swa')} = {size}, of values {values}, of"
            f" which {n_rot} turn: the forward pass does not compute that, converting works"
        )
    return size


def _windows(keys: Keys, wiring: Wiring, n_block: int) -> tuple[int, ...]:
    if not wiring.global_every:
        return (0,) * n_block
    stated = keys.get("attention.sliding_window")
    window = keys.count("attention.sliding_window") if stated else wiring.window
    pattern = keys.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray) and pattern.dtype == bool and len(pattern) == n_block:
        return tuple(window if slides else 0 for slides in pattern)
    period = keys.count("attention.sliding_window_pattern", wiring.global_every)
    return tuple(window if number % period else 0 for number in range(1, n_block + 1))


def _pooling(keys: Keys) -> str:
    number = keys.get("pooling_type")
    known = number is None or (isinstance(number, np.integer) and int(number) in POOLINGS)
    if not known:
        raise UnsupportedError(
            f"metadata: {keys.name('pooling_type')} = {number!r:.80}: the forward pass pools by"
            f" {', '.join(POOLINGS.values())}, converting works"
        )
    return POOLINGS[0 if number is None else int(number)]


def _cap(keys: Keys, key: str, default: float | None) -> float:
    given = keys.get(key)
    if default is None or given == 0 or (given is None and default == 0):
        return 0.0
    return keys.number(key, default)
