"""How the tensors of a block are connected: what the forward pass needs besides GGUF metadata.

The facts are those of llama.cpp's graphs (src/models/*.cpp), found by general.architecture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

# The linears of a block by the input they share, in the order in which they run.
SITES = MappingProxyType(
    {
        "attn": ("attn_q", "attn_k", "attn_v"),
        "attn_output": ("attn_output",),
        "ffn": ("ffn_gate", "ffn_up"),
        "ffn_down": ("ffn_down",),
    }
)

# The sites of the two halves of a block, each of which adds to the hidden states once.
ATTENTION = ("attn", "attn_output")
MLP = ("ffn", "ffn_down")

# The same where one tensor holds the rows of several: q, k, v, and gate before up.
FUSED_QKV = MappingProxyType({**SITES, "attn": ("attn_qkv",)})
FUSED_GATE = MappingProxyType({**SITES, "ffn": ("ffn_up",)})
FUSED = MappingProxyType({**FUSED_QKV, "ffn": ("ffn_up",)})
# Without values of their own.
KEYS_AS_VALUES = MappingProxyType({**SITES, "attn": ("attn_q", "attn_k")})

# What a scale of an input's columns can be divided out of, without a change to the function: a norm
# right before the linears, or a linear whose rows become the columns. Attention is linear in v (a
# kv head's row becomes a column of each query head of its group), a gated mlp in up.
FOLDS = MappingProxyType(
    {
        "attn": "attn_norm",
        "attn_output": "attn_v",
        "ffn": "ffn_norm",
        "ffn_down": "ffn_up",
        "output": "output_norm",
    }
)


def folds_without(*sites: str, fused_qkv: bool = False) -> Mapping[str, str]:
    """FOLDS but for `sites`; the rows of v may be inside attn_qkv."""
    fused = {"attn_output": "attn_qkv"} if fused_qkv else {}
    kept = {site: before for site, before in {**FOLDS, **fused}.items() if site not in sites}
    return MappingProxyType(kept)


# Multi-head latent attention (MLA, arXiv 2405.04434), in place of "attn": queries and, for all
# heads, one latent vector that keys and values are made of, and what turns of every key. Then each
# head: what of its query does not turn goes into the latent's space, is compared there, and what
# was mixed there comes back. Queries may come out of a latent vector of their own.
_HEADS = {"attn_k_b": ("attn_k_b",), "attn_v_b": ("attn_v_b",)}
_REST = {short: SITES[short] for short in ("attn_output", *MLP)}
LATENT = MappingProxyType({"attn": ("attn_q", "attn_kv_a_mqa"), **_HEADS, **_REST})
LATENT_QUERIES = MappingProxyType(
    {"attn": ("attn_q_a", "attn_kv_a_mqa"), "attn_q_b": ("attn_q_b",), **_HEADS, **_REST}
)
PER_HEAD = ("attn_k_b", "attn_v_b")
QUERY_NORM, LATENT_NORM = "attn_q_a_norm", "attn_kv_a_norm"

# The input of attn_v_b has no fold: the norm before it is what keys are compared in, too.
LATENT_FOLDS = MappingProxyType({**FOLDS, "attn_k_b": "attn_q", "attn_output": "attn_v_b"})
LATENT_QUERIES_FOLDS = MappingProxyType(
    {**LATENT_FOLDS, "attn_q_b": QUERY_NORM, "attn_k_b": "attn_q_b"}
)


# The same of a mixture of experts, in place of "ffn" and "ffn_down": what the input of every token
# meets; of each expert what those of its own tokens meet; the second half of an expert for all.
ROUTER = "ffn_gate_inp"
SHARED_GATE = "ffn_gate_inp_shexp"
SHARED = ("ffn_gate_shexp", "ffn_up_shexp")
EXPERT = MappingProxyType(
    {"ffn_exps": ("ffn_gate_exps", "ffn_up_exps"), "ffn_down_exps": ("ffn_down_exps",)}
)
SHARED_DOWN = "ffn_down_shexp"


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts: each token goes to those of the largest softmax probabilities.

    normalized: the weights of a token's experts are scaled so that their sum is 1; shared: one more
    expert sees all tokens; shared_gate: times the sigmoid of a linear of its own;
    shared_optional: the file says the size of that expert, or that there is none; scaled: the file
    may say a factor of the weights; divided: where the file says no inner size of an expert, that
    of the mlp is divided among those that a token sees; biased: the router and each expert's
    linears have biases.
    """

    normalized: bool
    shared: bool = False
    shared_gate: bool = True
    shared_optional: bool = False
    scaled: bool = False
    divided: bool = False
    biased: bool = False


@dataclass(frozen=True)
class Wiring:
    """A decoder block x += attention(norm(x)); x += gated_mlp(norm(x)), and what differs from it.

    rope: which dimensions of a head turn together, "norm" neighbours, "neox" the two halves, ""
    none; partial_rope: the file may say that only the first dimensions turn; unturned_every: every
    n-th block does not turn at all (0: all do); activation: of the gate, or of up without a gate:
    "silu", "gelu" (tanh form) or "relu2" (its square); gated: the mlp has a gate; sites: linears by
    shared input, where attn_qkv holds q, k, v, and ffn_up without an ffn_gate beside it holds gate
    and up; folds: by site, what stands before it and can take a scale; norm: "rms", or "layer",
    which subtracts the mean; norm_bias: norms have a bias; norms: those before attention and mlp,
    "" without; post_norms: norms of what attention and mlp return, "" without; parallel: the mlp
    reads what the attention reads, not what it made, None: the file says so; qk_norm: norms of each
    head of q and k; joint_qk_norm: they span all heads; multipliers: the file may say scales of the
    embedding, of what attention and mlp add, and of attention scores; logit_scale: the power (1 or
    -1) of the file's scale that logits are multiplied by, 0 none; scaled_embedding: times
    sqrt(n_embd); wide_blocks: the number of blocks of the one model that scales attention by hidden
    size per head instead of head size; global_every: every n-th block sees the whole context, the
    others a window (0: all see all); window: its length unless the file says; local_rope: sliding
    blocks rotate unscaled, with a base of their own; local_base: that base unless the file says,
    None: that of the other blocks; attention_cap, logit_cap: soft caps unless the file says, 0
    none, None never; mixture: of experts in place of the mlp, if the file has some; positions: a
    learned vector for each place in the window is added to the scaled embedding; with_tensor: the
    wiring of files whose blocks have a tensor of that name, in place of this one; latent: keys and
    values are made of a latent vector, see LATENT; token_types: the vector of the first type of
    tokens is added to the embedding; embedding_norm: the sum is normed; causal: tokens see only
    those before them; sum_norms: norms of what the halves of a block leave, "" without; embeds:
    what the last block leaves is the result, without norm and head; attention_scale: of
    attention scores, None: by head size; local_heads: sliding blocks have sizes of heads of their
    own; global_sites: the linears of the other blocks where they differ, which take what k returns
    for v, too, if there is no attn_v; value_norm: each head of v is divided by its rms;
    block_scale: hidden states are multiplied by a number of each block after it; sinks: each head
    has a score for looking at no token.
    """

    rope: str
    partial_rope: bool = False
    unturned_every: int = 0
    activation: str = "silu"
    gated: bool = True
    sites: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: SITES)
    folds: Mapping[str, str] = field(default_factory=lambda: FOLDS)
    norm: str = "rms"
    norm_bias: bool = False
    norms: tuple[str, str] = ("attn_norm", "ffn_norm")
    post_norms: tuple[str, str] = ("", "")
    parallel: bool | None = False
    qk_norm: bool = False
    joint_qk_norm: bool = False
    multipliers: bool = False
    logit_scale: int = 0
    scaled_embedding: bool = False
    wide_blocks: int | None = None
    global_every: int = 0
    window: int = 0
    local_rope: bool = False
    local_base: float | None = 10000.0
    attention_cap: float | None = None
    logit_cap: float | None = None
    mixture: Mixture | None = None
    positions: bool = False
    with_tensor: Mapping[str, "Wiring"] = field(default_factory=dict)
    latent: bool = False
    token_types: bool = False
    embedding_norm: bool = False
    causal: bool = True
    sum_norms: tuple[str, str] = ("", "")
    embeds: bool = False
    attention_scale: float | None = None
    local_heads: bool = False
    global_sites: Mapping[str, tuple[str, ...]] | None = None
    value_norm: bool = False
    block_scale: bool = False
    sinks: bool = False
