"""InternLM2: Llama's computation with q, k, v in one tensor, which becomes three."""

from collections.abc import Callable

import numpy as np

from quantcli.architectures.architecture import Architecture
from quantcli.architectures.config import Config
from quantcli.architectures.layers import SIZES, equal_heads
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.tensors import Tensor
from quantcli.architectures.wiring import Wiring

_LAYER = "model.layers.{}."
_Q, _KV = "num_attention_heads*head_dim", "num_key_value_heads*head_dim"
_WIDE, _NARROW = ("intermediate_size", "hidden_size"), ("hidden_size", "intermediate_size")


def _rows(which: slice, *, paired: bool) -> Callable[[Config], np.ndarray]:
    """The numbers of the source rows that are q, k or v.

    For each kv head the source has the query heads of its group, then k, then v. paired: rows j and
    j + head_dim/2 of a head become neighbours, as ggml's rope turns them.
    """

    def order(config: Config) -> np.ndarray:
        groups, half = config.count("num_key_value_heads"), config.count("head_dim") // 2
        heads = np.arange(config.size(f"{_Q}+2*{_KV}")).reshape(groups, -1, 2, half)[:, which]
        return (heads.swapaxes(2, 3) if paired else heads).reshape(-1)

    return order


def _part(gguf: str, size: str, which: slice, *, paired: bool) -> Tensor:
    return Tensor(
        f"blk.{{}}.{gguf}",
        f"{_LAYER}attention.wqkv",
        (size, "hidden_size"),
        order=_rows(which, paired=paired),
        whole=f"{_Q}+2*{_KV}",
    )


INTERNLM2 = Architecture(
    name="InternLM2",
    classes=("InternLM2ForCausalLM",),
    gguf="internlm2",
    parameters=SIZES,
    embedding=Tensor("token_embd", "model.tok_embeddings", ("vocab_size", "hidden_size")),
    block=(
        Tensor("blk.{}.attn_norm", f"{_LAYER}attention_norm", ("hidden_size",)),
        _part("attn_q", _Q, slice(None, -2), paired=True),
        _part("attn_k", _KV, slice(-2, -1), paired=True),
        _part("attn_v", _KV, slice(-1, None), paired=False),
        Tensor("blk.{}.attn_output", f"{_LAYER}attention.wo", ("hidden_size", _Q)),
        Tensor("blk.{}.ffn_norm", f"{_LAYER}ffn_norm", ("hidden_size",)),
        Tensor("blk.{}.ffn_gate", f"{_LAYER}feed_forward.w1", _WIDE),
        Tensor("blk.{}.ffn_up", f"{_LAYER}feed_forward.w3", _WIDE),
        Tensor("blk.{}.ffn_down", f"{_LAYER}feed_forward.w2", _NARROW),
    ),
    head=Tensor("output", "output", ("vocab_size", "hidden_size")),
    defaults={
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    rope=RopeStyle(scalings=("linear",)),
    accepts={
        "hidden_act": ("silu", "swish"),
        "bias": (False,),
        "tie_word_embeddings": (False,),
    },
    checks=(equal_heads,),
    wiring=Wiring(rope="norm"),
)
