"""Llama, and Mistral and Mixtral, which llama.cpp runs as Llama."""

from dataclasses import replace

from quantcli.architectures.architecture import Architecture, Parameter
from quantcli.architectures.layers import (
    HEAD_DIM,
    SIZES,
    attention,
    check_experts,
    expert_counts,
    experts,
    gated_mlp,
    norm,
)
from quantcli.architectures.rope import RopeStyle
from quantcli.architectures.wiring import Mixture, Wiring

LLAMA = Architecture(
    name="Llama",
    classes=("LlamaForCausalLM", "LLaMAForCausalLM"),
    gguf="llama",
    parameters=(
        *SIZES,
        *HEAD_DIM,
        Parameter("vocab_size", "vocab_size"),
        Parameter("rope.dimension_count", "head_dim"),
    ),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(output_bias=None, paired=True),
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_mlp(bias=None),
    ),
    defaults={"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0},
    rope=RopeStyle(scalings=("linear", "yarn", "llama3")),
    accepts={"hidden_act": ("silu", "swish"), "is_causal": (True,)},
    wiring=Wiring(rope="norm", mixture=Mixture(normalized=True)),
)

# sliding_window is not written: llama.cpp's llama architecture attends to the whole context.
MISTRAL = replace(
    LLAMA,
    name="Mistral",
    classes=("MistralForCausalLM",),
    defaults={**LLAMA.defaults, "num_key_value_heads": 8, "max_position_embeddings": 131072},
)

MIXTRAL = replace(
    MISTRAL,
    name="Mixtral",
    classes=("MixtralForCausalLM",),
    parameters=(
        *SIZES,
        *(replace(length, optional=True) for length in HEAD_DIM),
        Parameter("vocab_size", "vocab_size"),
        Parameter("rope.dimension_count", "head_dim"),
        *expert_counts("num_experts"),
    ),
    block=(
        norm("attn_norm", "input_layernorm"),
        *attention(paired=True),
        norm("ffn_norm", "post_attention_layernorm"),
        *experts(
            "num_experts",
            "intermediate_size",
            "block_sparse_moe.gate",
            "block_sparse_moe.experts.{}",
            ("w1", "w3", "w2"),
        ),
    ),
    defaults={
        **MISTRAL.defaults,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    checks=(check_experts,),
)
