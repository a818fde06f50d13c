"""Qwen2 and Qwen2.5 (biases on q, k, v), Qwen3 (norms on q and k)."""

from dataclasses import replace

from quantcli.architectures.architecture import Architecture
from quantcli.architectures.layers import (
    HEAD_DIM,
    SIZES,
    attention,
    gated_mlp,
    norm,
    qk_norm,
)
from quantcli.architectures.wiring import Wiring

QWEN2 = Architecture(
    name="Qwen2",
    classes=("Qwen2ForCausalLM",),
    gguf="qwen2",
    parameters=(*SIZES, *(replace(length, optional=True) for length in HEAD_DIM)),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(bias=True),
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_mlp(),
    ),
    defaults={
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    accepts={"hidden_act": ("silu", "swish"), "is_causal": (True,)},
    wiring=Wiring(rope="neox"),
)

QWEN3 = replace(
    QWEN2,
    name="Qwen3",
    classes=("Qwen3ForCausalLM",),
    gguf="qwen3",
    parameters=(*SIZES, *HEAD_DIM),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(),
        *qk_norm(),
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_mlp(),
    ),
    defaults={**QWEN2.defaults, "head_dim": 128},
    wiring=Wiring(rope="neox", qk_norm=True),
)
