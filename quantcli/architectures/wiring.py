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


# The same of a mixture of experts, in place of "ffn" and "ffn_down": what the input of every token
# meets; of each expert what those of its own tokens meet; the second half of an expert for all.
ROUTER = "ffn_gate_inp"
SHARED = ("ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp")
EXPERT = MappingProxyType(
    {"ffn_exps": ("ffn_gate_exps", "ffn_up_exps"), "ffn_down_exps": ("ffn_down_exps",)}
)
SHARED_DOWN = "ffn_down_shexp"


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts: each token goes to those of the largest softmax probabilities.

    normalized: the weights of a token's experts are scaled so that their sum is 1; shared: one more
    expert sees all tokens, times the sigmoid of a linear of its own.
    """

    normalized: bool
    shared: bool = False


@dataclass(frozen=True)
class Wiring:
    """A decoder block x += attention(norm(x)); x += gated_mlp(norm(x)), and what differs from it.

    rope: which dimensions of a head turn together, "norm" neighbours, "neox" the two halves;
    activation: of the gate, "silu" or "gelu" (tanh form); sites: linears by shared input; folds: by
    site, what stands before it and can take a scale; post_norms: norms of what attention and mlp
    return, "" without; qk_norm: norms of each head of q and k; scaled_embedding: times
    sqrt(n_embd); wide_blocks: the number of blocks of the one model that scales attention by hidden
    size per head instead of head size; global_every: every n-th block sees the whole context, the
    others a window (0: all see all); window: its length unless the file says; local_rope: sliding
    blocks rotate with a base of their own, unscaled; attention_cap, logit_cap: soft caps unless the
    file says, 0 none, None never; mixture: of experts in place of the mlp, if the file has some.
    """

    rope: str
    activation: str = "silu"
    sites: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: SITES)
    folds: Mapping[str, str] = field(default_factory=lambda: FOLDS)
    post_norms: tuple[str, str] = ("", "")
    qk_norm: bool = False
    scaled_embedding: bool = False
    wide_blocks: int | None = None
    global_every: int = 0
    window: int = 0
    local_rope: bool = False
    attention_cap: float | None = None
    logit_cap: float | None = None
    mixture: Mixture | None = None
